"""Models and losses with one defect each, and defects of the trainer itself: what `verify` must catch and name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.experiments.verify.ranks import verify_on_rank
from largebatch.gradient.accumulation import OneByOne
from largebatch.losses import CrossEntropy


class Net(nn.Module):
    """Sound: two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 12), nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.change(torch.relu(self.first(images.flatten(1)))))

    def change(self, hidden: Tensor) -> Tensor:
        return hidden


class RankSeeded(Net):
    def change(self, hidden: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(os.environ.get("RANK", "0")))
        return hidden * (torch.rand(hidden.shape, generator=generator) < 0.5) if self.training else hidden


class RankFactor(Net):
    def change(self, hidden: Tensor) -> Tensor:
        return hidden * (1 + int(os.environ.get("RANK", "0")))


class RankSeededNumpy(Net):
    def change(self, hidden: Tensor) -> Tensor:
        draws = np.random.default_rng(int(os.environ.get("RANK", "0"))).random(hidden.shape)
        return hidden * torch.from_numpy(draws).to(hidden) if self.training else hidden


class DrawsByItself(Net):
    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)

    def change(self, hidden: Tensor) -> Tensor:
        return hidden * float(self.generator.random()) if self.training else hidden


class Remembers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(12))

    def change(self, hidden: Tensor) -> Tensor:
        self.mean.lerp_(hidden.detach().mean(0), 0.1)
        return hidden - self.mean


class Skips(Net):
    """Sound: a layer that is left out at random, one that only some samples meet, power iterations."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped, self.expert = nn.Linear(12, 12), nn.Linear(12, 12)
        self.first = nn.utils.parametrizations.spectral_norm(self.first)

    def change(self, hidden: Tensor) -> Tensor:
        if self.training and np.random.rand() < 0.7:  # noqa: NPY002
            return hidden
        rows = (hidden[:, 0] > 0.1).nonzero()[:, 0]
        return hidden.index_add(0, rows, self.expert(hidden[rows])) + self.dropped(hidden)


class Centre(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden - hidden.mean(0)


class CouplesSamples(Net):
    def __init__(self) -> None:
        super().__init__()
        self.centre = Centre()

    def change(self, hidden: Tensor) -> Tensor:
        return self.centre(hidden)


class TiedByMemory(Net):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Parameter(self.last.bias.data)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.again


class Shifted(Net):
    """Sound, with a parameter that no loss depends on: softmax is blind to it, so its gradient is rounding alone."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.shift


class OnlyShifted(Shifted):
    """Trains nothing but the parameter that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name == "shift")


class MeanLoss(CrossEntropy):
    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        return super().loss_per_sample(outputs, targets) / len(targets)


class CoupledLoss(CrossEntropy):
    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        return super().loss_per_sample(outputs, targets) + F.softmax(outputs[:, 0], 0)


class ReducingLoss(CrossEntropy):
    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        loss = super().loss_per_sample(outputs, targets)
        if dist.is_initialized():
            dist.all_reduce(loss.detach().sum())
        return loss


@contextmanager
def reweighted(factor: Any) -> Iterator[None]:
    """The trainer's one normalisation times `factor(plan, rank)`."""
    original = OneByOne.__call__

    def changed(self: Any, step: Any, parts: Any, weight: float, reduction: Any) -> Any:
        return original(self, step, parts, weight * factor(self._runtime), reduction)

    OneByOne.__call__ = changed  # type: ignore[method-assign]
    try:
        yield
    finally:
        OneByOne.__call__ = original  # type: ignore[method-assign]


def ranks_alike(config: Any, plans: Any, folder: str, steps: int) -> Any:
    """As `verify_on_rank`, with gradients averaged over ranks however many samples each of them had."""
    outcome: Any = ([], {})
    for plan in plans:
        with reweighted(lambda runtime, plan=plan: plan.global_batch_size / plan.world_size
                        / plan.rank_batch_size(runtime.rank)):  # fmt: skip
            outcome[1].update(verify_on_rank(config, [plan], folder, steps)[1])
    return outcome


def off_by_a_little(config: Any, plans: Any, folder: str, steps: int) -> Any:
    """As `verify_on_rank`, with a gradient that is a millionth too long where there are several ranks."""
    with reweighted(lambda runtime: 1 + 1e-6):
        return verify_on_rank(config, plans, folder, steps)
