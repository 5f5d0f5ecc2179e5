"""Stretches of code after which a module and all random generators are as before, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from largebatch.distributed.generators import preserved_generators
from largebatch.gradient.kept_buffers import KeptBuffers
from largebatch.models.modes import Modes, evaluating


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Put the module into eval mode, and on every way out restore weights, modes, and what `unmoved` restores.

    Gradients (`.grad`) are not looked at: use `torch.autograd.grad`, which leaves them alone.
    """
    with weights_unmoved(module), evaluating(module):
        yield


@contextmanager
def weights_unmoved(module: nn.Module) -> Iterator[None]:
    """On every way out restore weights, and what `unmoved` restores."""
    parameters = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
    with unmoved(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, saved in parameters:
                    parameter.copy_(saved)


@contextmanager
def unmoved(module: nn.Module) -> Iterator[None]:
    """On every way out restore what a forward pass may move: buffers and random generators.

    The generators are torch's on the CPU and on every CUDA device, numpy's and Python's.
    """
    buffers = KeptBuffers(module)
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        with preserved_generators():
            yield
    finally:
        buffers.put_back()
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)


@contextmanager
def rolled_back(module: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Train on a module for a while: on every way out all is as before, an exception or Ctrl-C included.

    Restored are weights, gradients, modes, the optimizer's state and settings, and what `unmoved` restores. Tensors
    that were there before keep their identity, so that whoever holds one (a distributed wrapper, a fused optimizer) is
    right. Takes the memory of one copy of all of these.
    """
    parameters = [(one, one.detach().clone(), _kept(one.grad)) for one in module.parameters()]
    modes = Modes(module)
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    states = [
        (one, state, {name: _kept(value) for name, value in state.items()}) for one, state in optimizer.state.items()
    ]
    with unmoved(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value, grad in parameters:
                    parameter.copy_(value)
                    parameter.grad = _restored(grad)
                optimizer.state.clear()
                for one, state, values in states:
                    state.clear()
                    state.update({name: _restored(value) for name, value in values.items()})
                    optimizer.state[one] = state
            for group, setting in zip(optimizer.param_groups, settings, strict=True):
                for key in group.keys() - setting.keys() - {"params"}:
                    del group[key]
                group.update(setting)
            modes.restore()


def _kept(value: Any) -> tuple[Any, Any]:
    """The value itself and, of a tensor, a copy of what it holds."""
    return value, value.detach().clone() if isinstance(value, torch.Tensor) else None


def _restored(kept: tuple[Any, Any]) -> Any:
    value, copy = kept
    return value if copy is None else value.copy_(copy)
