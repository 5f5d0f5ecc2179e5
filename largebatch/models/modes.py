"""Training and evaluation mode. Modules that the user put into `eval()` stay there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class Modes:
    """Snapshot of the mode of every module of a model.

    Args:
        module: the unwrapped model.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._modes = [(part, part.training) for part in module.modules()]

    def restore(self) -> None:
        """Restore the modes. This also calls the model's `train`, which a class may override to do more."""
        self._module.train(self._modes[0][1])
        for part, is_training in self._modes:
            part.training = is_training


def train_mode(module: nn.Module) -> None:
    """Call `module.train()`, but keep submodules in evaluation mode: frozen batch norms, dropout switched off.

    All training code starts with this; all evaluation code runs inside `evaluating`.

    Args:
        module: the unwrapped model.

    Raises:
        ValueError: if the whole model is in evaluation mode: the submodules frozen on purpose are then unknown.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
    >>> train_mode(model)
    >>> [part.training for part in model]
    [True, False]
    """
    if not module.training:
        raise ValueError(
            f"{type(module).__name__} is in evaluation mode as a whole, as from_pretrained leaves it: dropout would be "
            "off, and batch norm frozen. Call train() on it first, and eval() on the parts that are to stay frozen."
        )
    kept = [part for part in module.modules() if not part.training]
    module.train()
    for part in kept:
        part.training = False


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore all modes on exit.

    Args:
        module: the unwrapped model.
    """
    modes = Modes(module)
    try:
        module.eval()
        yield
    finally:
        modes.restore()
