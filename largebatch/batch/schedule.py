"""Warmup and decay: samples seen -> factor of the peak learning rate.

A schedule is a pure function of the samples that the run has consumed. It does not depend on steps, ranks or
accumulation, so its curve over samples is the same on every topology, and a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

DECAYS = ("constant", "linear", "cosine", "quarter_cosine", "step", "polynomial")
Decay = Callable[[int, int], float]
"""(samples since the warmup, samples from there to the end) -> factor in [0, 1]: see `decays`, or one's own."""
WARMUP_KINDS = ("gradual", "constant")


@dataclass(frozen=True)
class Schedule:
    """Factor of the peak learning rate for the step that starts after `samples_seen` samples.

    Warmup starts at `warmup_start_factor` (base LR / peak LR in Goyal et al. 2017; 0 in MLPerf and LAMB) at sample 0:

    - gradual: linear in samples up to 1 at `warmup_samples` (Goyal et al. 2017, section 2.2). From zero, the first
      step moves no weight, as in every implementation that evaluates the schedule at the start of the step.
    - constant: the start factor until `warmup_samples`, then 1 at once (the same section; He et al. 2016, section 4.2)

    After the warmup, with p = (samples_seen - warmup_samples) / (total_samples - warmup_samples):

    - constant: 1
    - linear: 1 - p
    - cosine: (1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017)
    - quarter_cosine: cos(pi p / 2)
    - polynomial: (1 - p)^power (LARS: power 2)
    - step: `step_gamma` to the number of `step_samples` milestones passed, counted from sample 0, warmup included
      (Goyal et al. 2017)

    or a function: one of `largebatch.batch.decays` (wsd, restarts, inverse_sqrt), or your own, see `Decay`.

    All but step are stretched to end at `end_factor`: end + (1 - end) f(p).

    >>> schedule = Schedule(total_samples=100, warmup_samples=10, warmup_start_factor=0.5, decay="linear")
    >>> schedule(0), schedule(5), schedule(10), schedule(55), schedule(100)
    (0.5, 0.75, 1.0, 0.5, 0.0)
    >>> schedule = Schedule(total_samples=100, warmup_samples=10, warmup_start_factor=0.5, warmup_kind="constant")
    >>> schedule(0), schedule(9), schedule(10)
    (0.5, 0.5, 1.0)

    Raises:
        ValueError: for an unknown decay or kind of warmup, a warmup as long as the run or longer, a constant warmup
            that has no samples or a factor of 0, factors outside [0, 1], or milestones that are not increasing or lie
            outside the decay.
    """

    total_samples: int
    warmup_samples: int = 0
    warmup_start_factor: float = 0.0
    warmup_kind: str = "gradual"
    decay: str | Decay = "cosine"
    end_factor: float = 0.0
    power: float = 2.0
    step_samples: tuple[int, ...] = ()
    step_gamma: float = 0.1

    def __post_init__(self) -> None:
        if not callable(self.decay) and self.decay not in DECAYS:
            raise ValueError(f"decay={self.decay!r} is not a decay. Choose one of {', '.join(DECAYS)}.")
        if self.total_samples < 1:
            raise ValueError(f"total_samples={self.total_samples}: a schedule needs at least 1 sample.")
        if not 0 <= self.warmup_samples < self.total_samples:
            raise ValueError(
                f"A warmup of {self.warmup_samples} samples does not fit into a run of {self.total_samples}: "
                "nothing would be left to train at the peak rate. Shorten the warmup or lengthen the run."
            )
        if (check := getattr(self.decay, "check", None)) is not None:
            check(self.total_samples - self.warmup_samples)
        self._check_constant_warmup()
        if not 0 <= self.warmup_start_factor <= 1 or not 0 <= self.end_factor <= 1:
            raise ValueError(
                f"warmup_start_factor={self.warmup_start_factor}, end_factor={self.end_factor}: "
                "both are shares of the peak rate, from 0 to 1."
            )
        if not 0 < self.power < math.inf or not 0 < self.step_gamma <= 1:
            raise ValueError(
                f"power={self.power}, step_gamma={self.step_gamma}: power is above 0 and finite, "
                "step_gamma above 0 and at most 1."
            )
        if list(self.step_samples) != sorted(set(self.step_samples)):
            raise ValueError(f"step_samples={self.step_samples}: milestones must be increasing.")
        if bool(self.step_samples) != (self.decay == "step"):
            raise ValueError(
                f"decay={self.decay_name} with {len(self.step_samples)} milestones: milestones belong to the decay "
                "`step`, which needs at least one."
            )
        outside = [one for one in self.step_samples if not self.warmup_samples < one < self.total_samples]
        if outside:
            raise ValueError(
                f"A milestone at {outside[0]} samples in a run of {self.total_samples} with a warmup of "
                f"{self.warmup_samples}: during warmup it would make the rate jump, and after the run it "
                "has no effect. Move or remove it."
            )

    def _check_constant_warmup(self) -> None:
        if self.warmup_kind not in WARMUP_KINDS:
            raise ValueError(f"warmup_kind={self.warmup_kind!r}: choose one of {', '.join(WARMUP_KINDS)}.")
        if self.warmup_kind == "gradual":
            return
        if not self.warmup_samples:
            raise ValueError(
                "warmup_kind=constant has no effect with a warmup of 0 samples. Use gradual, or set a warmup."
            )
        if self.warmup_start_factor == 0:
            raise ValueError(
                f"warmup_kind=constant with warmup_start_factor=0: the first {self.warmup_samples} samples would not "
                "change the weights. Start from the base rate."
            )

    def __call__(self, samples_seen: int) -> float:
        """Factor in [0, 1] for the optimizer step that starts after `samples_seen` samples."""
        if samples_seen < self.warmup_samples and self.warmup_kind == "constant":
            return self.warmup_start_factor
        if samples_seen < self.warmup_samples:
            return self.warmup_start_factor + (1 - self.warmup_start_factor) * samples_seen / self.warmup_samples
        if callable(self.decay):
            return self.end_factor + (1 - self.end_factor) * self._of_function(self.decay, samples_seen)
        if self.decay == "step":
            return self.step_gamma ** sum(samples_seen >= milestone for milestone in self.step_samples)
        progress = (samples_seen - self.warmup_samples) / (self.total_samples - self.warmup_samples)
        shape = _SHAPES[self.decay](min(progress, 1.0), self.power)
        return self.end_factor + (1 - self.end_factor) * shape

    def _of_function(self, decay: Decay, samples_seen: int) -> float:
        whole = self.total_samples - self.warmup_samples
        value = float(decay(min(samples_seen - self.warmup_samples, whole), whole))
        if not 0 <= value <= 1:
            raise ValueError(
                f"{self.decay_name} gives {value} after {samples_seen} samples: a factor is a share of the peak rate, "
                "from 0 to 1. Raise the peak by scaling.base_lr."
            )
        return value

    @property
    def decay_name(self) -> str:
        """Name of the decay; of a function, its own."""
        decay = self.decay
        return decay if isinstance(decay, str) else str(getattr(decay, "name", getattr(decay, "__name__", "own")))


_SHAPES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, power: 1.0,
    "linear": lambda progress, power: 1 - progress,
    "cosine": lambda progress, power: (1 + math.cos(math.pi * progress)) / 2,
    "quarter_cosine": lambda progress, power: math.sin(math.pi * (1 - progress) / 2),  # exactly 0 at the end
    "polynomial": lambda progress, power: (1 - progress) ** power,
}
