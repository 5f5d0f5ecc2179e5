"""Averages of the weights over a run, counted in samples: they mean the same at any batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.training.loop import Observer, Run
from largebatch.training.step_report import StepReport

_NARROW = (torch.bfloat16, torch.float16)  # a share of 1e-4 is below their last digit


@dataclass(frozen=True)
class AverageSettings:
    """Which average is taken.

    Attributes:
        rate: weights of `n` samples ago count exp(-rate * n), a moving average; None: all alike (SWA).
        start: samples after which it begins, with the weights of that moment.
        every: steps between its updates; each counts the samples since the last one.
    """

    rate: float | None
    start: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if (self.rate is not None and not 0 < self.rate < math.inf) or self.start < 0 or self.every < 1:
            raise ValueError(
                f"rate={self.rate}, start={self.start}, every={self.every}: a rate is above 0, a start at least 0, and "
                "there is at least one step between updates."
            )

    @classmethod
    def of_half_life(cls, samples: float, *, start: int = 0, every: int = 1) -> AverageSettings:
        """Weights of so many samples ago count half.

        >>> AverageSettings.of_half_life(300).decay(300)
        0.5
        """
        return cls(math.log(2) / samples, start, every)

    @classmethod
    def of_decay(cls, decay: float, batch_size: float, *, start: int = 0, every: int = 1) -> AverageSettings:
        """What a decay per step of a batch of this size means: decay^(B / batch_size) per step of B samples.

        Source: Busbridge et al. 2023, "How to Scale Your EMA", definition 1.2.

        >>> settings = AverageSettings.of_decay(0.9, 32)
        >>> round(settings.decay(64), 12)
        0.81
        """
        return cls(-math.log(decay) / batch_size, start, every)

    @property
    def half_life(self) -> float | None:
        """In samples; None of a plain mean."""
        return None if self.rate is None else math.log(2) / self.rate

    def decay(self, samples: float) -> float:
        """Share that an update keeps of a moving average, after so many samples."""
        assert self.rate is not None
        return math.exp(-self.rate * samples)

    def share(self, samples: int, before: int) -> float:
        """Share of the present weights in an update.

        Args:
            samples: since the last update.
            before: that the average already stands for.
        """
        return samples / (samples + before) if self.rate is None else -math.expm1(-self.rate * samples)


class WeightAverage(Observer):
    """Keeps an average of the trainable parameters beside a run; the run itself is bit for bit as without.

    It lives on every rank, which has the same weights and so the same average, without a collective. Frozen parameters
    and buffers, such as running statistics of batch norm, have no average: with it go those of the run at that moment.
    A step that the guard leaves out does not count. A step that the fp16 loss scaler leaves out counts with the weights
    as they are.

    Args:
        settings: see `AverageSettings`.

    In a loop of one's own: `begin(module)` once, `update(module, samples)` after each optimizer step, and
    `with average.in_place(module):` around an evaluation.

    >>> module, average = nn.Linear(1, 1, bias=False), WeightAverage(AverageSettings.of_half_life(10))
    >>> _ = nn.init.zeros_(module.weight)
    >>> average.begin(module)
    >>> _ = nn.init.ones_(module.weight)
    >>> average.update(module, 10)
    >>> with average.in_place(module):
    ...     module.weight.item()
    0.5
    >>> module.weight.item()
    1.0
    """

    def __init__(self, settings: AverageSettings) -> None:
        self.settings = settings
        self._averages: dict[str, Tensor] = {}
        self._counted = self._waiting = 0

    @property
    def has_begun(self) -> bool:
        """Whether there is an average yet."""
        return bool(self._averages)

    def on_start(self, run: Run) -> None:
        """Begin with the weights that the run starts from, unless it begins later."""
        if not self.has_begun and run.progress.samples_seen >= self.settings.start:
            self.begin(run.module)

    def after_step(self, run: Run, report: StepReport) -> None:
        """Count the step, and update the average in every `every`-th."""
        if report.is_skipped:
            return
        if not self.has_begun:
            if report.samples_seen >= self.settings.start:
                self.begin(run.module)
            return
        self._waiting += report.plan.global_batch_size
        if report.taken.is_due(self.settings.every):
            self.update(run.module, 0)

    def begin(self, module: nn.Module) -> None:
        """The average is the present weights; a plain mean begins with the next ones."""
        self._averages = {name: _wide(one.detach(), copies=True) for name, one in _trainable(module)}
        self._counted = self._waiting = 0

    @torch.no_grad()
    def update(self, module: nn.Module, samples: int) -> None:
        """Take the present weights into the average, for the samples since the last update and `samples` more."""
        waiting, self._waiting = self._waiting + samples, 0
        share = self.settings.share(waiting, self._counted)
        self._counted += waiting
        weights = [_wide(one.detach()) for _, one in _trainable(module)]
        torch._foreach_lerp_(list(self._averages.values()), weights, share)

    @contextmanager
    def in_place(self, module: nn.Module) -> Iterator[None]:
        """Inside the module has the averaged weights; behind it its own again, bit for bit.

        Takes the memory of a second copy of the weights.
        """
        own = [(one, one.detach().clone(), self._averages[name]) for name, one in _trainable(module)]
        try:
            with torch.no_grad():
                for one, _, average in own:
                    one.copy_(average)
            yield
        finally:
            with torch.no_grad():
                for one, kept, _ in own:
                    one.copy_(kept)

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """The average under every name of a parameter; empty before it begins."""
        first = {id(one): name for name, one in module.named_parameters()}
        named = module.named_parameters(remove_duplicate=False)
        return {name: self._averages[first[id(one)]] for name, one in named if first[id(one)] in self._averages}

    def counts(self) -> dict[str, int]:
        """The samples that it stands for, and those that wait for the next update."""
        return {"counted": self._counted, "waiting": self._waiting}

    def load(self, module: nn.Module, tensors: Mapping[str, Any], counts: Mapping[str, int]) -> None:
        """Go on with what `tensors` and `counts` returned; without tensors it begins anew.

        Raises:
            KeyError: if a parameter has no average.
        """
        if not tensors:
            self._averages, self._counted, self._waiting = {}, 0, 0
            return
        self.begin(module)
        for name, average in self._averages.items():
            average.copy_(tensors[name])
        self._counted, self._waiting = counts["counted"], counts["waiting"]


def average_of(run: Run) -> WeightAverage | None:
    """The average that is kept beside a run."""
    return next((one for one in run.observers if isinstance(one, WeightAverage)), None)


def _trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, one) for name, one in module.named_parameters() if one.requires_grad]


def _wide(weights: Tensor, *, copies: bool = False) -> Tensor:
    return weights.to(torch.float32 if weights.dtype in _NARROW else weights.dtype, copy=copies)
