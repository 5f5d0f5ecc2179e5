"""A rank's part of a gradient, micro-batch by micro-batch; see `coupled_losses` and `side_by_side` for other ways."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from largebatch.batch.random_keys import stream_key
from largebatch.distributed.runtime import Inputs, Runtime
from largebatch.gradient.reductions import Reduction
from largebatch.gradient.step import Step, Weight


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch as far as gradients need it; those of a loader have more.

    Attributes:
        inputs: [n, ...], or a dict of such.
        targets: [n, ...].
        index: place in the step's list of micro-batches, over all ranks.
        is_placeholder: whether no sample of it could be loaded: another one stands in, which lets ranks meet and
            counts nothing.
    """

    inputs: Inputs
    targets: Tensor
    index: int
    is_placeholder: bool = False


class LocalPass(Protocol):
    """How a rank computes its part of a gradient.

    Attributes:
        loss: sums per sample.
        is_joint: whether the micro-batches of a step are computed together, and depend on each other.
    """

    loss: Any
    is_joint: bool

    def __call__(self, step: Step, parts: Iterator[Any], weight: Weight, reduction: Reduction) -> Tensor:
        """Add `weight` times the gradient of this rank's loss sum to `.grad`, each backward pass inside `one_pass`.

        Args:
            step: the one that is taken. Draws inside the model are keyed by it and by the index of the micro-batch,
                never by the rank.
            parts: this rank's micro-batches of it.
            weight: the one normalisation: `reduction.scale` / (samples, or valid tokens, of the whole global batch).
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
    """One micro-batch after the other, so that only one is in memory; a `LocalPass` for losses that are sums."""

    is_joint = False

    def __init__(self, runtime: Runtime, loss: Any) -> None:
        self.loss, self._runtime = loss, runtime

    def __call__(self, step: Step, parts: Iterator[Any], weight: Weight, reduction: Reduction) -> Tensor:
        """See `LocalPass`."""
        runtime = self._runtime
        loss_sum = torch.zeros((), dtype=torch.float64, device=runtime.device)
        for left in reversed(range(len(step.plan.micro_batches(runtime.rank)))):
            part = next(parts)
            inputs, targets = runtime.place(part.inputs), runtime.place_tensor(part.targets)
            runtime.seed(micro_batch_key(step.random_key, part.index))
            with reduction.one_pass(part.index, is_last=left == 0):
                micro_loss = self.loss.loss_per_sample(forward(reduction.model, inputs), targets).sum()
                if part.is_placeholder:
                    micro_loss = 0 * micro_loss
                runtime.backward(micro_loss * weight)
            loss_sum += micro_loss.detach()
        return loss_sum
