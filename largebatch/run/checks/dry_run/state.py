"""Finds state that a forward pass in training mode keeps for the next one, and parameters that it skips.

On one process each pass sees the state that the previous one left. On several ranks it does not, so each kind of state
needs a rule that is independent of the ranks. State without such a rule is refused.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from largebatch.batch.random_keys import stream_key
from largebatch.distributed.generators import seed_generators
from largebatch.gradient.snapshots import preserving_weights
from largebatch.losses import Loss
from largebatch.models.modes import train_mode
from largebatch.run.checks.dry_run.as_before import as_before
from largebatch.run.checks.dry_run.passes import outputs_of
from largebatch.run.checks.dry_run.samples import TriedBatch, as_given, device_of, rows_of


@dataclass(frozen=True)
class KeptState:
    """State that forward passes in training mode change besides gradients, and data-dependent control flow.

    Attributes:
        by_step: buffers and weights that every pass changes identically, whatever its samples and draws: power
            iterations of a spectral norm, counters of passes, momentum encoders.
        by_samples: other changed buffers and weights, except running statistics of norms: codebooks, queues, counters
            of samples, embeddings with `max_norm`.
        is_hidden: whether a second pass with the same samples, draws and buffers gave other losses.
        choices: operations that bring values of tensors to Python, by name: a pass may then skip parameters.
        absent: parameters without a gradient in all tried passes, for a model with choices.
        changes_inputs: whether a pass writes to its inputs, as a first layer with inplace=True does.
    """

    by_step: tuple[str, ...] = ()
    by_samples: tuple[str, ...] = ()
    is_hidden: bool = False
    choices: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    changes_inputs: bool = False


def find_state(model: nn.Module, loss: Loss, batch: TriedBatch, *, precision: str, seed: int) -> KeptState:
    """Pass a micro-batch through a model three times and compare its state; restores the model afterwards.

    Args:
        model: on the device on which it is tried.
        loss: training loss.
        batch: two or more samples; with one sample, all changed state counts as changed by samples.
        precision: of the run.
        seed: of the run.
    """
    with as_before(model):
        train_mode(model)
        _leave_start(model)
        choices = _Choices()

        def values(kept: Tensor, draw: int) -> Tensor:
            seed_generators(stream_key(seed, "state", draw), device_of(model))
            inputs = as_given(rows_of(batch.inputs, kept), model, precision)
            with _noting_draws(choices):
                outputs = outputs_of(model, inputs, precision)
            return loss.loss_per_sample(outputs, as_given(batch.targets[kept], model, precision)).detach().double()

        every = torch.arange(batch.size)
        with preserving_weights(model):
            before = _tensors(model)
            with choices:
                first = values(every, 1)
            after = _tensors(model)
        with preserving_weights(model):
            rtol = _DIGITS_OF_CPU if device_of(model).type == "cpu" else _DIGITS_OF_GPU
            is_hidden = not torch.allclose(values(every, 1), first, rtol=rtol, atol=1e-9, equal_nan=True)
        moved = [name for name, value in after.items() if not _same(value, before.get(name))]
        by_step: list[str] = []
        if moved and batch.size > 1:
            # A third, not a half: a batch that repeats its samples may have two equal halves.
            other = _after(model, lambda: values(every[: max(batch.size // 3, 1)], 2))
            if other is None:  # the model refuses this size: use the first sample in place of all
                other = _after(model, lambda: values(torch.zeros_like(every), 2))
            by_step = [name for name in moved if _same(after[name], (other or {}).get(name))]
    by_samples = [name for name in moved if name not in by_step]
    by_samples += [name for name in _bounded(model) if name not in moved]
    return KeptState(tuple(by_step), tuple(by_samples), is_hidden, tuple(sorted(choices.names)))


@torch.no_grad()
def _leave_start(model: nn.Module) -> None:
    """Change the weights, as steps do: a running average of them would not move while they equal its start."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.mul_(1.01)


_DIGITS_OF_CPU, _DIGITS_OF_GPU = 1e-6, 1e-3  # kernels of a GPU that add in any order differ, most of all in bf16
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def _after(model: nn.Module, forward_pass: Callable[[], Tensor]) -> dict[str, Tensor] | None:
    """Buffers and weights after a pass; None if it fails."""
    with preserving_weights(model):
        try:
            forward_pass()
        except Exception:
            return None
        return _tensors(model)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all buffers but running statistics, which have a rule of their own; bit sums of all weights.

    Weights may be large; the sum of their bits shows whether they changed.
    """
    statistics = {
        id(buffer)
        for norm in model.modules()
        if isinstance(norm, _NormBase)
        for buffer in (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    }
    buffers = {name: one.detach().clone() for name, one in model.named_buffers() if id(one) not in statistics}
    return buffers | {name: _sum_of_bits(one.detach()) for name, one in model.named_parameters()}


def _sum_of_bits(weight: Tensor) -> Tensor:
    real = torch.view_as_real(weight) if weight.is_complex() else weight
    return real.contiguous().view(_INTEGERS[real.element_size()]).sum(dtype=torch.int64)


def _bounded(model: nn.Module) -> list[str]:
    """Weights of embeddings with `max_norm`: a pass scales down the rows that it looks up."""
    return [
        f"{path}.weight".lstrip(".")
        for path, part in model.named_modules()
        if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.max_norm is not None
    ]


def _same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


_LOOKS = frozenset(
    {
        "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "equal", "allclose",
        "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "is_nonzero",
    }
)  # fmt: skip


class _Choices(TorchFunctionMode):
    """Records operations that turn values of tensors into Python values or shapes: control flow may depend on them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        by_mask = name in ("__getitem__", "__setitem__") and _has_mask(args[1])
        if name in _LOOKS or by_mask or (name == "where" and len(args) == 1):
            self.names.add("a mask as index" if by_mask else name.strip("_"))
        return func(*args, **(kwargs or {}))


def _has_mask(index: Any) -> bool:
    parts: Sequence[Any] = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)


@contextmanager
def _noting_draws(choices: _Choices) -> Iterator[None]:
    """Record draws from Python's and numpy's generators: control flow may depend on them, too."""
    before = {"random": random.getstate(), "numpy.random": pickle.dumps(np.random.get_state())}  # noqa: NPY002
    yield
    after = {"random": random.getstate(), "numpy.random": pickle.dumps(np.random.get_state())}  # noqa: NPY002
    choices.names |= {name for name, state in after.items() if state != before[name]}
