"""Measures the gradient noise of a step with a single micro-batch, by extra passes over parts of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.batch.random_keys import stream_key
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import forward
from largebatch.gradient.micro_batch_norms import MicroBatchNorms
from largebatch.gradient.snapshots import preserving_buffers_and_rng
from largebatch.gradient.step import Measures, Step, Weight

_SMALL_SHARE = 8  # the smaller part, where one is enough: B / 8
_UNEXPLAINED = 0.01  # of the noise of the step's gradient


class SplitMicroBatch:
    """An instrument: squared gradient norms of two parts of a micro-batch that is a whole global batch, per parameter.

    With parts of b_1 + b_2 = B samples and mean gradients g_1 and g_2, the step's gradient is
    g = (b_1 g_1 + b_2 g_2) / B as long as samples do not see each other. Then g_1 says all:

        b_1 |g_1|^2 + b_2 |g_2|^2 - B |g|^2 = b_1 B / b_2 |g_1 - g|^2

    and, for normal noise, as precisely from a small part as from a half: an eighth of the batch is passed through the
    model once more. Batch norm and dropout break the sum: statistics and masks of the parts are their own. Then both
    halves are passed through, and their mean takes the place of g: the noise is that of micro-batches of B / 2 samples.

    Which case a model is, is measured: the first measurement takes both halves, and so does every 2nd, 4th, 8th, ... If
    the halves leave less than 1 % of the noise of g unexplained, the measurements in between take the small part.

    Gradients, weights, buffers and random generators are as before afterwards. It needs memory for two gradients.

    Args:
        runtime: the job: of one process, as several have a micro-batch each.
        module: the unwrapped model, in train mode.
        loss: sums per sample.
        norms: add up what is measured here, and hold it.
    """

    def __init__(self, runtime: Runtime, module: nn.Module, loss: Any, norms: MicroBatchNorms) -> None:
        self._norms = norms
        self._runtime, self._module, self._loss = runtime, module, loss
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._num_measured = 0
        self._adds_up = True

    def is_due(self, step: Step) -> bool:
        """In steps that measure norms and have a single micro-batch."""
        return Measures.NORMS in step.measures and len(step.plan.micro_batch_sizes) == 1

    @contextmanager
    def around(self, step: Step, parts: Iterator[Any], weight: Weight) -> Iterator[Iterator[Any]]:
        """See `Instrument`."""
        micro_batch = next(parts)
        yield iter([micro_batch])
        self._norms.prepare()
        weighted, whole = self.measure(micro_batch, weight=weight, random_key=step.random_key)
        self._norms.found = self._norms.sum(weighted, whole, num_parts=2)

    def measure(self, micro_batch: Any, *, weight: Weight, random_key: int) -> tuple[Tensor, Tensor]:
        """b_1 |g_1|^2 + b_2 |g_2|^2 and |g|^2 of each parameter, as of `MicroBatchNorms.sq_norms`.

        `.grad` holds `weight` times the gradient of the loss sum (times the loss scale), and the result has its units.

        Args:
            micro_batch: the whole global batch, of at least 4 samples.
            weight: what the step's loss sum was multiplied by.
            random_key: of the step; the parts draw from streams of their own.
        """
        size = len(micro_batch.targets)
        self._num_measured += 1
        takes_halves = self._num_measured & (self._num_measured - 1) == 0 or not self._adds_up
        with preserving_buffers_and_rng(self._module):
            if not takes_halves:
                return self._from_small_part(micro_batch, max(size // _SMALL_SHARE, 1), weight, random_key)
            return self._from_halves(micro_batch, size // 2, weight, random_key)

    def state(self) -> dict[str, Any]:
        """Which case the model is, and when that is measured again, as plain values."""
        return {"num_measured": self._num_measured, "adds_up": self._adds_up}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self._num_measured, self._adds_up = int(state["num_measured"]), bool(state["adds_up"])

    def _from_small_part(self, micro_batch: Any, cut: int, weight: Weight, random_key: int) -> tuple[Tensor, Tensor]:
        size = len(micro_batch.targets)
        part = self._gradient(micro_batch, slice(0, cut), weight, random_key)
        whole = self._sq_norms([one.grad for one in self._parameters])
        # As sums: g_1 - g = B / b_1 (part - b_1 / B sum).
        excess = self._sq_norms(_combined(part, [one.grad for one in self._parameters], factor=-cut / size))
        return size**3 / (cut * (size - cut)) * excess + size * whole, whole

    def _from_halves(self, micro_batch: Any, cut: int, weight: Weight, random_key: int) -> tuple[Tensor, Tensor]:
        size = len(micro_batch.targets)
        one = self._gradient(micro_batch, slice(0, cut), weight, random_key)
        other = self._gradient(micro_batch, slice(cut, size), weight, random_key)
        whole = _combined(one, other, factor=1.0)
        weighted = size**2 * (self._sq_norms(one) / cut + self._sq_norms(other) / (size - cut))
        sq_norms = self._sq_norms(whole)
        if self._adds_up:
            noise = (weighted - size * sq_norms)[:, 0].sum() / size
            left = self._sq_norms(_combined(whole, [each.grad for each in self._parameters], factor=-1.0))[:, 0].sum()
            self._adds_up = bool(left <= _UNEXPLAINED * noise)
        return weighted, sq_norms

    def _sq_norms(self, gradients: Sequence[Tensor | None]) -> Tensor:
        return self._norms.sq_norms(gradients)

    def _gradient(self, micro_batch: Any, rows: slice, weight: Weight, random_key: int) -> list[Tensor | None]:
        inputs = micro_batch.inputs
        cut = {name: part[rows] for name, part in inputs.items()} if isinstance(inputs, dict) else inputs[rows]
        self._runtime.seed(stream_key(random_key, "part of a micro-batch", rows.start))
        outputs = forward(self._module, self._runtime.place(cut))
        loss = self._loss.loss_per_sample(outputs, self._runtime.place_tensor(micro_batch.targets[rows])).sum()
        return list(torch.autograd.grad(loss * weight * self._runtime.loss_scale, self._parameters, allow_unused=True))


def _combined(one: Sequence[Tensor | None], other: Sequence[Tensor | None], *, factor: float) -> list[Tensor | None]:
    """The sum one + factor * other."""
    return [
        part if rest is None else rest * factor if part is None else torch.add(part, rest, alpha=factor)
        for part, rest in zip(one, other, strict=True)
    ]
