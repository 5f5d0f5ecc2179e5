"""What a forward pass of a model in training mode keeps for the next one, and what it leaves out.

On one process a pass follows another one, and each finds what the former left behind. On several ranks it does not, so
every kind of state needs a rule that does not know the ranks, or there is none.
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
from largebatch.run.checks.dry_run.passes import in_precision, outputs_of
from largebatch.run.checks.dry_run.samples import TriedBatch, rows_of


@dataclass(frozen=True)
class KeptState:
    """What forward passes of a model in training mode move besides gradients, and how they choose their way.

    Attributes:
        by_step: buffers and weights that a pass moves alike whatever its samples and draws: power iterations of a
            spectral norm, counters of passes, momentum encoders.
        by_samples: other ones, but for running statistics of norms: codebooks, queues, counters of samples, embeddings
            that bound the rows that they look up.
        is_hidden: whether a pass with the same samples, draws and buffers gave something else the second time.
        choices: what of Python looks at values on the way, by name: a pass may then skip parameters.
        absent: parameters that got no gradient in any of several tried passes, of a model that has choices.
        changes_inputs: whether a pass writes to its inputs, as a first layer with inplace=True does.
    """

    by_step: tuple[str, ...] = ()
    by_samples: tuple[str, ...] = ()
    is_hidden: bool = False
    choices: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    changes_inputs: bool = False


def find_state(model: nn.Module, loss: Loss, batch: TriedBatch, *, precision: str, seed: int) -> KeptState:
    """Pass a micro-batch through a model three times, and look at what is left behind; all is as before afterwards.

    Args:
        model: that trains, on the CPU.
        loss: of training.
        batch: of two samples or more, or what moves is taken to move with the samples.
        precision: of the run.
        seed: of the run.
    """
    with as_before(model):
        train_mode(model)
        _leave_start(model)
        choices = _Choices()

        def values(kept: Tensor, draw: int) -> Tensor:
            seed_generators(stream_key(seed, "state", draw))
            inputs = in_precision(rows_of(batch.inputs, kept), precision)
            with _noting_draws(choices):
                outputs = outputs_of(model, inputs, precision)
            return loss.loss_per_sample(outputs, in_precision(batch.targets[kept], precision)).detach().double()

        every = torch.arange(batch.size)
        with preserving_weights(model):
            before = _tensors(model)
            with choices:
                first = values(every, 1)
            after = _tensors(model)
        with preserving_weights(model):
            is_hidden = not torch.allclose(values(every, 1), first, rtol=1e-6, atol=1e-9, equal_nan=True)
        moved = [name for name, value in after.items() if not _same(value, before.get(name))]
        by_step: list[str] = []
        if moved and batch.size > 1:
            # A third: of a batch that repeats its samples, a half may be alike.
            other = _after(model, lambda: values(every[: max(batch.size // 3, 1)], 2))
            if other is None:  # a size that no micro-batch of the run has: the first sample in place of all
                other = _after(model, lambda: values(torch.zeros_like(every), 2))
            by_step = [name for name in moved if _same(after[name], (other or {}).get(name))]
    by_samples = [name for name in moved if name not in by_step]
    by_samples += [name for name in _bounded(model) if name not in moved]
    return KeptState(tuple(by_step), tuple(by_samples), is_hidden, tuple(sorted(choices.names)))


@torch.no_grad()
def _leave_start(model: nn.Module) -> None:
    """Move what is trained, as steps do: an average of weights stands still while they are what it began with."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.mul_(1.01)


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
    """Copies of all buffers but the running statistics of norms, which have a rule of their own, and sums of weights.

    Of weights, which may be large, the sum of their bits tells whether they moved.
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
    """Weights of embeddings whose rows a pass scales down to `max_norm`, sooner or later, where it looks them up."""
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
    """Notes what takes values of tensors to Python, or makes shapes of them: code can go other ways by it."""

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
    """Note draws of Python and numpy, which are numbers of Python."""
    before = {"random": random.getstate(), "numpy.random": pickle.dumps(np.random.get_state())}  # noqa: NPY002
    yield
    after = {"random": random.getstate(), "numpy.random": pickle.dumps(np.random.get_state())}  # noqa: NPY002
    choices.names |= {name for name, state in after.items() if state != before[name]}
