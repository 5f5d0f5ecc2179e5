"""What a training loop of somebody else's does: its forward passes, and the updates of its optimizers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


def listen(
    model: nn.Module, *, on_forward: Callable[[int], None], on_update: Callable[[Optimizer], None]
) -> Callable[[], None]:
    """Call bound methods when the loop acts, for as long as their objects are in use elsewhere.

    Args:
        model: what the loop calls.
        on_forward: gets the number of samples of each forward pass that may have a backward pass.
        on_update: gets each optimizer of one of the parameters when `.grad` is what it takes: before its step, or after
            a step with a closure, which makes the backward passes.

    Returns:
        What ends it.
    """
    own = weakref.ref(model)
    update = _weakly(on_update)

    def is_own(optimizer: Optimizer) -> bool:
        module = own()
        ids = set() if module is None else {id(one) for one in module.parameters()}
        return any(id(one) in ids for group in optimizer.param_groups for one in group["params"])

    def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not _has_closure(args, kwargs) and is_own(optimizer):
            update(optimizer)

    def after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if _has_closure(args, kwargs) and is_own(optimizer):
            update(optimizer)

    handles: list[Any] = [
        model.register_forward_pre_hook(_ForwardListener(_weakly(on_forward)), with_kwargs=True),
        register_optimizer_step_pre_hook(before),
        register_optimizer_step_post_hook(after),
    ]

    def end() -> None:
        for handle in handles:
            handle.remove()

    weakref.finalize(on_forward.__self__, end)  # type: ignore[attr-defined]
    return end


def require_visible_gradients(model: nn.Module) -> None:
    """Raise ValueError if the gradients of a model's micro-batches cannot be seen on a rank, or there are none."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    parameters = list(model.parameters())
    sharded = any(isinstance(one, DTensor) for one in parameters)
    if sharded or any(isinstance(part, FullyShardedDataParallel) for part in model.modules()):
        raise ValueError(
            "The parameters are sharded over ranks (FSDP): no rank sees the gradient of a micro-batch. Measure on the "
            "same model in DistributedDataParallel, or `largebatch measure variance` on its weights."
        )
    if type(model).__module__.partition(".")[0] == "deepspeed":
        raise ValueError("DeepSpeed keeps gradients in buffers of its own. Measure with DistributedDataParallel.")
    if any(isinstance(one, nn.UninitializedParameter) for one in parameters):
        raise ValueError("Lazy modules have no parameters yet: run one batch through the model first.")
    if not any(one.requires_grad for one in parameters):
        raise ValueError("The model has no parameter with requires_grad: there is no gradient to measure.")


class _ForwardListener:
    """A hook of a module that a copy of the module does not have: a saved or averaged model is not listened to."""

    def __init__(self, call: Callable[[int], None] | None = None) -> None:
        self._call = call

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._call is not None and torch.is_grad_enabled():
            self._call(num_rows([*args, *kwargs.values()]))

    def __reduce__(self) -> tuple[Any, ...]:
        return _ForwardListener, ()


def num_rows(values: Iterable[Any]) -> int:
    """First dimension of the first tensor, also inside dicts and lists; 0 if there is none.

    >>> num_rows([None, {"ids": torch.zeros(3, 2)}])
    3
    """
    for value in values:
        if isinstance(value, Tensor) and value.dim():
            return len(value)
        nested = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
        if nested and (found := num_rows(nested)):
            return found
    return 0


def _weakly(method: Callable[[Any], None]) -> Callable[[Any], None]:
    reference = weakref.WeakMethod(method)

    def call(argument: Any) -> None:
        if (bound := reference()) is not None:
            bound(argument)

    return call


def _has_closure(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return (args[1] if len(args) > 1 else kwargs.get("closure")) is not None
