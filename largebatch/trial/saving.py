"""Tries what a checkpoint holds: a model that trains to its end and then cannot be saved must be impossible."""

from __future__ import annotations

from torch import nn

from largebatch.checkpoint import require_storable


def try_saving(model: nn.Module, optimizer: object) -> None:
    """Whether the state of the model can be written, read and loaded again.

    Raises:
        ValueError: if not; says which part of it.
    """
    state = dict(model.state_dict())
    try:
        require_storable({"model": state}, {})
    except ValueError as error:
        raise ValueError(
            f"the model's state_dict cannot be saved: {error} What is no tensor, such as get_extra_state returns, "
            "belongs into buffers."
        ) from error
