"""Activation checkpointing by module name: less memory, one more forward pass, the same numbers."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

BLOCKS = r"blocks\.\d+$"
"""Names of the modules that a deep model repeats."""


def checkpoint_activations(model: nn.Module, pattern: str = BLOCKS) -> list[str]:
    """Checkpoint the modules whose names match `pattern`: they keep only their inputs and recompute in backward.

    Outputs, gradients, buffers and the state of the random generators are bitwise equal to those without checkpointing:
    dropout draws the same mask again, and batch norm counts a batch once although it sees it twice. The module tree and
    all names of parameters and buffers stay the same. torch.compile leaves blocks with running statistics uncompiled.
    Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".

    Args:
        model: changed in place: the matching modules get a new `forward`.
        pattern: regular expression, searched for in the names of `model.named_modules()`.

    Returns:
        Names of the checkpointed modules, in the order of the tree.

    Raises:
        ValueError: if `pattern` is no regular expression, matches no module, matches a module inside another match
            (it would be computed three times), or matches a module with a `forward` of its own.

    >>> model = nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})
    >>> checkpoint_activations(model)
    ['blocks.0', 'blocks.1']
    """
    matches = matching_modules(model, pattern)
    for name, module in matches.items():
        if "forward" in vars(module):
            raise ValueError(
                f"Module {name!r} already has a forward of its own: a module can be checkpointed once. "
                f"Call checkpoint_activations once, on a model whose methods nothing else replaces."
            )
    for module in matches.values():
        has_statistics = bool(_norms_with_statistics(module))
        forward = _uncompiled_forward_with_statistics() if has_statistics else _checkpointed_forward
        # A method, not a closure, so that copy.deepcopy binds the copy's forward to the copy.
        module.forward = MethodType(forward, module)
    return list(matches)


def without_checkpointing(model: nn.Module) -> None:
    """Undo `checkpoint_activations`, in place."""
    for module in model.modules():
        own = getattr(vars(module).get("forward"), "__func__", None)
        if own is not None and inspect.unwrap(own).__name__ in _CHECKPOINTED:
            del module.forward


def matching_modules(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """The modules of a model whose names match `pattern`, in the order of the tree.

    Raises:
        ValueError: if `pattern` is no regular expression, matches no module, or matches a module inside another match.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"pattern={pattern!r} is not a regular expression: {error}. Example: blocks\\.\\d+$"
        ) from error
    names = [name for name, _ in model.named_modules()]
    matches = {name: module for name, module in model.named_modules() if expression.search(name)}
    if not matches:
        examples = ", ".join(repr(name) for name in names[1:9]) or "none, the model has no submodules"
        raise ValueError(
            f"pattern={pattern!r} matches none of the {len(names)} modules of {type(model).__name__}: at least one "
            f"module must match. Names are for example: {examples}."
        )
    for outer in matches:
        inner = next((name for name in matches if name != outer and _is_inside(name, outer)), None)
        if inner is not None:
            raise ValueError(
                f"pattern={pattern!r} matches {inner!r} inside {outer!r}: a module that matches must not contain "
                f"another one. Anchor the pattern with ^ and $ so that it matches one of the two."
            )
    return matches


def _is_inside(name: str, outer: str) -> bool:
    return outer == "" or name.startswith(outer + ".")


_CHECKPOINTED = ("_checkpointed_forward", "_checkpointed_forward_with_statistics")


def _checkpointed_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(type(module).forward, module, *args, use_reentrant=False, **kwargs)


@functools.cache
def _uncompiled_forward_with_statistics() -> Callable[..., Any]:
    """Exclude these blocks from torch.compile, which cannot trace a recomputation, and compile around them.

    Called only when needed: `torch.compiler.disable` imports the compiler, which takes longer than torch itself.
    """
    disabled: Callable[..., Any] = torch.compiler.disable(_checkpointed_forward_with_statistics)
    return disabled


def _checkpointed_forward_with_statistics(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _FrozenStatistics(_norms_with_statistics(module))

    return checkpoint(type(module).forward, module, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _norms_with_statistics(module: nn.Module) -> list[_NormBase]:
    return [norm for norm in module.modules() if isinstance(norm, _NormBase) and norm.running_mean is not None]


class _FrozenStatistics:
    """Context in which normalisation layers do not update their running statistics and batch counts.

    A class, not a generator, because it is entered more than once if the graph is retained (`retain_graph`).
    """

    def __init__(self, norms: list[_NormBase]) -> None:
        self._norms = norms
        self._momenta: list[float | None] = []
        self._counts: list[Tensor | None] = []

    def __enter__(self) -> None:
        self._momenta = [norm.momentum for norm in self._norms]
        self._counts = [norm.num_batches_tracked for norm in self._norms]
        for norm, count in zip(self._norms, self._counts, strict=True):
            # Not track_running_stats=False: recomputation must save as many tensors for backward as forward did.
            norm.momentum = 0.0
            norm.num_batches_tracked = None if count is None else torch.zeros_like(count)

    def __exit__(self, *_: object) -> None:
        for norm, momentum, count in zip(self._norms, self._momenta, self._counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = count
