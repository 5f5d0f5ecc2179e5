"""Training and evaluation mode: what the user put into `eval()` stays there, in training as in everything else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class Modes:
    """The mode of every module of a model, as at the moment at which this is made.

    Args:
        module: the unwrapped model.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._modes = [(part, part.training) for part in module.modules()]

    def restore(self) -> None:
        """Bring the modes back. `train` of the model is called, too: a class may do more in it than set a flag."""
        self._module.train(self._modes[0][1])
        for part, is_training in self._modes:
            part.training = is_training


def train_mode(module: nn.Module) -> None:
    """Call `module.train()`, and leave in evaluation mode what is in it: frozen batch norms, dropout that is off.

    Everything that trains starts with this, and everything that evaluates does it inside `evaluating`.

    Args:
        module: the unwrapped model.

    Raises:
        ValueError: if the model as a whole is in evaluation mode: then nobody can tell what was put there on purpose.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
    >>> train_mode(model)
    >>> [part.training for part in model]
    [True, False]
    """
    if not module.training:
        raise ValueError(
            f"{type(module).__name__} is in evaluation mode as a whole, as from_pretrained leaves it: dropout would be "
            "off, and batch norm frozen. Call train() on it first, and eval() on the parts that shall stay as they are."
        )
    kept = [part for part in module.modules() if not part.training]
    module.train()
    for part in kept:
        part.training = False


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while; on every way out the modes are as before.

    Args:
        module: the unwrapped model.
    """
    modes = Modes(module)
    try:
        module.eval()
        yield
    finally:
        modes.restore()
