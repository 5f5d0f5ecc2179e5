"""Build torch's optimizers without importing torch's compiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# A function that `torch._disable_dynamo` decorates looks for its stand-in under this name. If there is none it imports
# torch._dynamo to make one, which takes longer than importing torch. If torch renames it, only the speed is lost.
_STAND_IN = "__dynamo_disable"
_METHODS = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside, building a `torch.optim.Optimizer` and reading its state do not import torch._dynamo.

    For code that nobody compiles. A command that never takes a step, such as `plan`, starts in half the time.
    """
    functions = [getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None) for name in _METHODS]
    spared = [one for one in functions if one is not None and not hasattr(one, _STAND_IN)]
    for function in spared:
        setattr(function, _STAND_IN, function)
    try:
        yield
    finally:
        for function in spared:
            delattr(function, _STAND_IN)
