"""A run's model on a few samples, whole and in parts: the experiments on causes use it."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.generators import seed_generators
from largebatch.experiments.verify.comparison import relative_errors
from largebatch.experiments.verify.trajectories import gradients_of, in_precision
from largebatch.gradient.accumulation import forward
from largebatch.losses.coupled import is_coupled
from largebatch.models.modes import Modes
from largebatch.run.parts import build_loader
from largebatch.run.prepare import Prepared

_MOST_SAMPLES = 8


class Probe:
    """The model of a run on its first few samples, whole or cut in two parts of unequal size."""

    def __init__(self, prepared: Prepared) -> None:
        self.loss = prepared.loss
        self.model = copy.deepcopy(prepared.model)
        if prepared.config.precision.compute == "fp64":
            self.model = self.model.double()
        self._modes = Modes(self.model)
        self.count = min(prepared.numbers.plan.global_batch_size, _MOST_SAMPLES)
        plan = BatchPlan.solve(global_batch_size=self.count, world_size=1)
        (batch,) = build_loader(prepared, 0, plan=plan, num_workers=0).micro_batches(0, 1)
        self.inputs, self.targets = in_precision(prepared, batch)
        # 3 + 5: means over parts of equal size would agree with the mean over the whole.
        cut = max(self.count * 3 // 8, 1)
        self.parts = [slice(0, cut), slice(cut, self.count)]

    def train(self) -> None:
        """The modes in which the run trains."""
        self._modes.restore()

    def outputs(self, part: slice, *, seed: int = 1) -> Any:
        """The model's output for a part, with random numbers from `seed`."""
        seed_generators(seed)
        inputs = {name: value[part] for name, value in self.inputs.items()} if isinstance(self.inputs, dict) else None
        return forward(self.model, self.inputs[part] if inputs is None else inputs)

    def gradient(self, parts: list[slice]) -> dict[str, Tensor]:
        """Gradient of the summed loss, part by part; of a coupled loss over all parts together."""
        self.model.zero_grad()
        if is_coupled(self.loss):
            outputs = torch.cat([self.outputs(part) for part in parts])
            self.loss.loss_per_sample(outputs, self.targets).sum().backward()
        else:
            for part in parts:
                self.loss.loss_per_sample(self.outputs(part), self.targets[part]).sum().backward()
        return gradients_of(self.model)

    def split_error(self, *, undecided: Collection[str] = ()) -> float:
        """Relative difference between the gradients of the whole and of the parts, in the model's present mode.

        Tensors that rounding decides are left out: a gradient that is rounding alone has no relative error.
        """
        errors = relative_errors(self.gradient(self.parts), self.gradient([slice(0, self.count)]))
        return max((error for name, error in errors.items() if name not in undecided), default=0.0)

    def draws(self) -> bool:
        """Whether the model draws random numbers in training mode."""
        self.train()
        return not torch.equal(self.prediction(), self.prediction(seed=2))

    @torch.no_grad()
    def prediction(self, *, seed: int = 1) -> Tensor:
        """The outputs of the whole as a tensor, without a graph."""
        outputs = self.outputs(slice(0, self.count), seed=seed)
        prediction: Tensor = getattr(outputs, "logits", outputs)
        return prediction
