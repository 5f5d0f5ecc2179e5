"""largebatch: name one number, the global batch size, and train the same run on any number of ranks."""

import os.path


def conf_dir() -> str:
    """The folder conf/ with the Hydra groups: inside the package when installed, beside it in a checkout.

    Absolute, because Hydra reads a relative one differently for `python -m` and for a console script.
    """
    inside = os.path.join(os.path.dirname(os.path.realpath(__file__)), "conf")
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(os.path.dirname(inside)), "conf")
