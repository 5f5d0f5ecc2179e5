"""The learning-rate range test: one loss per step while the rate grows exponentially, until the loss diverges.

Source: Smith 2017, "Cyclical learning rates for training neural networks", section 3.3; smoothing and the threshold of
four times the best loss as in fastai.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import nn

from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section
from largebatch.diagnostics.smoothing import smooth
from largebatch.gradient.snapshots import rolled_back
from largebatch.models.modes import train_mode
from largebatch.optim import keep_lr_ratios, set_lr

Array = npt.NDArray[np.float64]

_SPANS = 3  # shortest curve, in spans of its smoothing


class RangeSettings(Section):
    """Rates of a range test, and its criterion of divergence.

    Attributes:
        min, max: first and last rate, with geometric steps between them.
        steps: number of rates.
        smoothing: k in [0, 1) of the exponential mean, which spans 1/(1 - k) steps.
        diverged_at: stop when the smoothed loss is this many times its best; above 1.

    Raises:
        ValueError: for a range without rates, or with fewer steps than three spans of the smoothing.

    >>> RangeSettings(min=0.01, max=1.0, steps=3, smoothing=0.0).rates.round(12).tolist()
    [0.01, 0.1, 1.0]
    """

    min: PositiveFloat = 1e-5
    max: PositiveFloat = 100.0
    steps: PositiveInt = 100
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.9
    diverged_at: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 4.0

    @model_validator(mode="after")
    def _is_a_test(self) -> RangeSettings:
        if not self.min < self.max:
            raise ValueError(f"min={self.min:g}, max={self.max:g}: rates grow from min to max. Raise max.")
        if self.steps < _SPANS * max(self.span, 1.0):
            raise ValueError(
                f"steps={self.steps}: smoothing={self.smoothing:g} spans {self.span:g} steps, and a curve needs "
                f"{_SPANS} times as many. Use {math.ceil(_SPANS * self.span)} or more, or less smoothing."
            )
        return self

    @property
    def span(self) -> float:
        """Steps that the smoothing spans; rounded, because 1 - 0.9 is not 0.1 in floating point."""
        return round(1 / (1 - self.smoothing), 9)

    @property
    def rates(self) -> Array:
        """All rates, ascending, [steps]."""
        return np.geomspace(self.min, self.max, self.steps)


@dataclass(frozen=True)
class RangeCurve:
    """Result of a range test.

    Attributes:
        settings: settings of the test.
        rates: rates used, [n].
        losses: mean loss over the batch of each step, before the step, [n]. The last may be inf or NaN.
        diverged: whether the test was stopped by the loss.
    """

    settings: RangeSettings
    rates: Array
    losses: Array
    diverged: bool

    @property
    def smoothed(self) -> Array:
        """Unbiased exponential mean of the losses, [n]; a last loss that is not finite has no weight."""
        return smooth(np.where(np.isfinite(self.losses), self.losses, np.nan), self.settings.span)

    @property
    def smoothed_rates(self) -> Array:
        """Rates of the smoothed losses, [n]: log rates under the same mean, so that both have the same lag."""
        return np.exp(smooth(np.log(self.rates), self.settings.span))


def walk_rates(take_step: Callable[[float], float], settings: RangeSettings) -> RangeCurve:
    """Take one step per rate until the loss diverges or the rates end.

    Args:
        take_step: takes an optimizer step with the given rate on the next batch, and returns the mean loss over this
            batch before the step. It must return the same number on all ranks, so that all stop together.
        settings: rates and criterion of divergence.
    """
    losses: list[float] = []
    diverged = False
    for rate in settings.rates:
        losses.append(float(take_step(float(rate))))
        if diverged := has_diverged(losses, settings):
            break
    return RangeCurve(settings, settings.rates[: len(losses)], np.array(losses), diverged)


def has_diverged(losses: Sequence[float], settings: RangeSettings) -> bool:
    """Whether the last loss ends the test: it is not finite, or the smoothed loss is far above its best.

    The threshold above the best smoothed loss is `diverged_at - 1` times its absolute value, or times the spread of the
    losses if that is larger, because multiples of a loss near or below zero mean nothing.

    >>> settings = RangeSettings(smoothing=0.0)
    >>> [has_diverged([2.0, 2.0, 2.0, last], settings) for last in (7.9, 8.1, math.nan)]
    [False, True, True]
    """
    if not math.isfinite(losses[-1]):
        return True
    if len(losses) < settings.span:
        return False  # too few to estimate the spread
    raw = np.array(losses)
    smoothed = smooth(raw, settings.span)
    best = float(smoothed.min())
    return bool(smoothed[-1] > best + (settings.diverged_at - 1) * max(abs(best), loss_spread(raw)))


def loss_spread(losses: Array) -> float:
    """Standard deviation of a loss around its trend, from the median absolute difference of neighbours.

    The median keeps a trend or a divergence from inflating it: half of all normal differences lie within
    0.6745 sqrt(2) standard deviations of the loss.

    >>> round(loss_spread(np.random.default_rng(0).normal(0.0, 0.1, 1000) + np.arange(1000) / 1000), 2)
    0.1
    """
    steps = np.abs(np.diff(losses[np.isfinite(losses)]))
    return float(np.median(steps)) / (0.6745 * math.sqrt(2)) if len(steps) else 0.0


def lr_range_test(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    closure: Callable[[], Any],
    settings: RangeSettings = RangeSettings(),  # noqa: B008  frozen
) -> RangeCurve:
    """A range test in your own loop. All state is restored bit for bit on exit, also after an exception.

    It starts from the current weights and optimizer state. With several ranks, call it on all of them with a closure
    that returns the loss of the whole global batch, so that all stop together. Read the result with `read_curve`.

    Args:
        module: model to train.
        optimizer: its optimizer; the rates of its groups keep their ratios to its default rate.
        closure: as for `optimizer.step`: takes the next batch, clears gradients, computes the loss and its gradient,
            and returns the loss, a tensor or a number. The batches that it consumes are not restored.
        settings: rates, smoothing and criterion of divergence.

    >>> weight = nn.Parameter(torch.tensor([3.0, 1.0]))
    >>> module, optimizer = nn.ParameterList([weight]), torch.optim.SGD([weight], lr=0.5)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (torch.tensor([4.0, 1.0]) * weight.square()).sum() / 2  # stable below 2 / 4
    ...     loss.backward()
    ...     return loss
    >>> bool(lr_range_test(module, optimizer, closure).rates[-1] > 0.5)
    True
    >>> weight.tolist(), optimizer.param_groups[0]["lr"]
    ([3.0, 1.0], 0.5)
    """

    def take_step(lr: float) -> float:
        set_lr(optimizer, lr)
        loss = closure()
        optimizer.step()
        return loss.item() if isinstance(loss, torch.Tensor) else float(loss)

    with rolled_back(module, optimizer):
        keep_lr_ratios(optimizer)
        train_mode(module)
        return walk_rates(take_step, settings)
