"""Makes torch's optimizers without importing torch's compiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# What `torch._disable_dynamo` has decorated looks its stand-in for compiled code up here, and else makes it: by
# importing torch._dynamo, which takes longer than importing torch. Where torch has another name, nothing is gained.
_STAND_IN = "__dynamo_disable"
_METHODS = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")


@contextmanager
def without_compiler() -> Iterator[None]:
    """While it is entered, making a `torch.optim.Optimizer` and reading its state leave torch._dynamo unimported.

    Only for code that nobody compiles. A command that never takes a step, such as `plan`, starts in half the time.
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
