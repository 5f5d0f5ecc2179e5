"""Where the Hydra groups are."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> str:
    """The folder conf/: inside the package when installed, beside it in a checkout.

    Absolute, because Hydra reads a relative one differently for `python -m` and for a console script.
    """
    inside = Path(__file__).resolve().parents[1] / "conf"
    return str(inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "conf")
