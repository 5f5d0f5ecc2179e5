"""Copies buffers, weights, random generators and optimizer state, and puts them back bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.distributed.generators import preserved_generators
from largebatch.gradient.step import Step, Weight
from largebatch.models.modes import Modes, evaluating


class Buffers:
    """Copies of all buffers of a module, at the moment at which it is made. Forward passes move some of them.

    Args:
        module: the unwrapped model.
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept = [
            (owner, name, buffer, None if buffer is None else buffer.detach().clone())
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the module the copies back; may be called again."""
        for owner, name, buffer, copy in self._kept:
            if buffer is not None and copy is not None and not is_expanded(buffer):
                buffer.copy_(copy)
            owner._buffers[name] = buffer  # some modules assign a new tensor instead of writing into theirs


def is_expanded(tensor: Tensor) -> bool:
    """Whether several elements share one place, as after `expand`: torch then refuses to write into it."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


@contextmanager
def measuring(module: nn.Module) -> Iterator[None]:
    """Put the module into eval mode, and on every way out restore it with all that `preserving_weights` restores.

    Gradients (`.grad`) are not looked at: use `torch.autograd.grad`, which leaves them alone.
    """
    with preserving_weights(module), evaluating(module):
        yield


@contextmanager
def preserving_weights(module: nn.Module) -> Iterator[None]:
    """On every way out restore weights, and what `preserving_buffers_and_rng` restores."""
    parameters = [(parameter, parameter.detach().clone()) for parameter in module.parameters()]
    with preserving_buffers_and_rng(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, saved in parameters:
                    parameter.copy_(saved)


@contextmanager
def preserving_buffers_and_rng(module: nn.Module) -> Iterator[None]:
    """On every way out restore what a forward pass may move: buffers and random generators.

    The generators are torch's on the CPU and on every CUDA device, numpy's and Python's.
    """
    buffers = Buffers(module)
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        with preserved_generators():
            yield
    finally:
        buffers.put_back()
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)


@contextmanager
def rolled_back(module: nn.Module, optimizer: torch.optim.Optimizer, *, on_host: bool = False) -> Iterator[None]:
    """Train on a module for a while: on every way out all is as before, an exception or Ctrl-C included.

    Restored are weights, gradients, modes, the optimizer's state, settings, counters and lists, and what
    `preserving_buffers_and_rng` restores. Tensors that were there before keep their identity, so that whoever holds one
    (a distributed wrapper, a fused optimizer) is right. Takes the memory of one copy of all of these; `on_host`: that
    of the host, so that the device has as much room inside as without, but for buffers.
    """
    parameters = [(one, _copied(one, on_host), _kept(one.grad, on_host)) for one in module.parameters()]
    before = Modes(module)
    settings = [
        {key: _kept(value, on_host) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    states = [
        (one, state, {name: _kept(value, on_host) for name, value in state.items()})
        for one, state in optimizer.state.items()
    ]
    attributes = {key: _kept(value, on_host) for key, value in vars(optimizer).items() if _is_plain(key, value)}
    with preserving_buffers_and_rng(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value, grad in parameters:
                    parameter.copy_(value)
                    parameter.grad = grad()
                optimizer.state.clear()
                for one, state, values in states:
                    state.clear()
                    state.update({name: restored() for name, restored in values.items()})
                    optimizer.state[one] = state
                for group, setting in zip(optimizer.param_groups, settings, strict=True):
                    for key in group.keys() - setting.keys() - {"params"}:
                        del group[key]
                    group.update({key: restored() for key, restored in setting.items()})
                vars(optimizer).update({key: restored() for key, restored in attributes.items()})
            before.restore()


def _kept(value: Any, on_host: bool) -> Callable[[], Any]:
    """Puts the value's content of now back into it and returns it; lists and dicts of an own optimizer included."""
    if isinstance(value, Tensor):
        copy = _copied(value, on_host)
        return lambda: value.copy_(copy)
    if isinstance(value, MutableMapping):
        pairs = [(key, _kept(one, on_host)) for key, one in value.items()]

        def put_back_mapping() -> Any:
            value.clear()
            value.update({key: restored() for key, restored in pairs})
            return value

        return put_back_mapping
    if isinstance(value, (list, deque, tuple)):
        parts = [_kept(one, on_host) for one in value]

        def put_back_parts() -> Any:
            own = [restored() for restored in parts]
            if not isinstance(value, tuple):
                value.clear()
                value.extend(own)
            return value

        return put_back_parts
    return lambda: value


def _is_plain(key: str, value: Any) -> bool:
    """Whether an attribute of an optimizer may be state that its steps move, such as a counter or a list of tensors.

    None is left as it becomes: kernels that were compiled meanwhile stay.
    """
    return key not in ("param_groups", "defaults") and isinstance(value, (int, float, Tensor, list, deque))


def _copied(value: Tensor, on_host: bool) -> Tensor:
    return value.detach().to("cpu", copy=True) if on_host else value.detach().clone()


class StepBuffers:
    """Lets each micro-batch of a step start from the buffers, and weights, that the step began with: an instrument.

    For what a forward pass moves alike whatever its samples (power iterations of a spectral norm, counters of passes,
    the averaged weights of a momentum encoder): after a step it has moved once, as after one pass of the whole global
    batch, on every rank alike and without a collective.

    Args:
        module: the unwrapped model.
        names: of the buffers and parameters.

    >>> class Counts(nn.BatchNorm1d):
    ...     def forward(self, inputs: Tensor) -> Tensor:
    ...         self.num_batches_tracked += 1
    ...         return inputs
    >>> counts = Counts(1)
    >>> for part in StepBuffers(counts, ["num_batches_tracked"]).one_by_one(iter(torch.zeros(3, 2, 1))):
    ...     _ = counts(part)
    >>> int(counts.num_batches_tracked)
    1
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        places = [name.rpartition(".") for name in names]
        self._places = [(module.get_submodule(owner), name) for owner, _, name in places]

    def is_due(self, step: Step) -> bool:
        """Whether there are any."""
        return bool(self._places)

    @contextmanager
    def around(self, step: Step, parts: Iterator[Any], weight: Weight) -> Iterator[Iterator[Any]]:
        """See `Instrument`."""
        yield self.one_by_one(parts)

    def one_by_one(self, micro_batches: Iterator[Any]) -> Iterator[Any]:
        """This rank's micro-batches of one step, each taken when the one before is done with."""
        start = [self._buffer(owner, name).detach().clone() for owner, name in self._places]
        for number, micro_batch in enumerate(micro_batches):
            if number > 0:
                with torch.no_grad():
                    for (owner, name), value in zip(self._places, start, strict=True):
                        self._buffer(owner, name).copy_(value)
            yield micro_batch

    def _buffer(self, owner: nn.Module, name: str) -> Tensor:
        buffer = getattr(owner, name)  # a pass may have put another tensor into its place
        assert isinstance(buffer, Tensor)
        return buffer
