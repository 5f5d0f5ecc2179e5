"""A rank's part of a gradient, micro-batch by micro-batch; see `coupled_losses` and `side_by_side` for other ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.distributed.runtime import Inputs, Runtime
from largebatch.gradient.reductions import Reduction
from largebatch.losses.coupled import is_coupled


class MicroBatchSource(Protocol):
    """What the accumulation needs to know of a micro-batch: its data and its place in the global batch."""

    @property
    def inputs(self) -> Inputs:
        """[n, ...], or a dict of such."""

    @property
    def targets(self) -> Tensor:
        """[n, ...]."""

    @property
    def index(self) -> int:
        """Place in the step's list of micro-batches, over all ranks."""

    @property
    def is_placeholder(self) -> bool:
        """Whether no sample of it could be loaded: another one stands in, which lets ranks meet and counts nothing."""


class LossPerSample(Protocol):
    """What the accumulation needs of a loss."""

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Sum of the loss over the units of each sample, [n]."""


class LocalPass(Protocol):
    """How a rank computes its part of a gradient."""

    @property
    def loss(self) -> Any:
        """Sums per sample."""

    def __call__(
        self, micro_batches: Iterator[Any], *, plan: BatchPlan, weight: float, random_key: int, reduction: Reduction
    ) -> Tensor:
        """Add `weight` times the gradient of this rank's loss sum to `.grad`, each backward pass inside `one_pass`.

        Args:
            micro_batches: this rank's part of the global batch.
            plan: which part that is.
            weight: the one normalisation: `reduction.scale` / (samples, or valid tokens, of the whole global batch).
            random_key: draws inside the model are keyed by it and by the micro-batch's index, not by the rank.
            reduction: has begun, and is finished by the caller.

        Returns:
            The sum of the loss over this rank's samples, float64 scalar on the device.
        """


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model with a tensor, or with a dict as keyword arguments."""
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def copies(inputs: Inputs) -> Inputs:
    """A tensor, or a dict of such, in memory of its own."""
    return {name: part.clone() for name, part in inputs.items()} if isinstance(inputs, dict) else inputs.clone()


def give_copies(model: nn.Module) -> None:
    """Have a model that writes to its inputs get copies: a micro-batch may be read twice.

    Noise scales, recomputed steps, and steps taken again after a shortage of memory do so.
    """

    def copied(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        return tuple(map(copies, inputs)), copies(named)

    model.register_forward_pre_hook(copied, with_kwargs=True)


def micro_batch_key(random_key: int, index: int) -> int:
    """Key of what the model draws for micro-batch `index` of a step."""
    return stream_key(random_key, "micro-batch", index)


class OneByOne:
    """One micro-batch after the other, so that only one is in memory; a `LocalPass`.

    Args:
        runtime: the job.
        loss: sums per sample.

    Raises:
        ValueError: for a loss that couples samples: over micro-batches it would be another loss.
    """

    def __init__(self, runtime: Runtime, loss: LossPerSample) -> None:
        if is_coupled(loss):
            raise ValueError(
                f"{type(loss).__name__} depends on all samples of a batch at once: added up over micro-batches it "
                "would compare fewer samples. Use Twice."
            )
        self.loss, self._runtime = loss, runtime

    def __call__(
        self, micro_batches: Iterator[Any], *, plan: BatchPlan, weight: float, random_key: int, reduction: Reduction
    ) -> Tensor:
        """See `LocalPass`."""
        runtime = self._runtime
        loss_sum = torch.zeros((), dtype=torch.float64, device=runtime.device)
        count = len(plan.micro_batches(runtime.rank))
        for number in range(1, count + 1):
            part = next(micro_batches)
            inputs, targets = runtime.place(part.inputs), runtime.place_tensor(part.targets)
            runtime.seed(micro_batch_key(random_key, part.index))
            with reduction.one_pass(part.index, is_last=number == count):
                micro_loss = self.loss.loss_per_sample(forward(reduction.model, inputs), targets).sum()
                if part.is_placeholder:
                    micro_loss = 0 * micro_loss
                runtime.backward(micro_loss * weight)
            loss_sum += micro_loss.detach()
        return loss_sum
