"""Batch-size ramps: the plan of a step as a function of the samples consumed before it."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from largebatch.batch.plan import BatchPlan


@dataclass(frozen=True)
class BatchRamp:
    """Batch plans, and the number of samples after which each takes effect.

    A step uses the last plan whose milestone the samples consumed before it have reached. So a run resumes inside a
    ramp from its position alone, on any number of ranks.

    Attributes:
        plans: the first holds from sample 0 on.
        milestones: `plans[i + 1]` holds from `milestones[i]` samples on; positive and increasing.
        chosen: place in `plans` of the plan of each stage, where a run chooses among them while it trains, see `then`;
            None: one after the other.

    Raises:
        ValueError: unless milestones are positive, increasing and one fewer than the stages, whose first plan is the
            first one.

    >>> small, large = (BatchPlan.solve(global_batch_size=size, world_size=1) for size in (4, 10))
    >>> ramp = BatchRamp((small, large), (6,))
    >>> [(position, plan.global_batch_size) for position, plan in ramp.steps(0, 4)]
    [(0, 4), (4, 4), (8, 10), (18, 10)]
    >>> ramp.num_steps(total_samples=29)
    4
    """

    plans: tuple[BatchPlan, ...]
    milestones: tuple[int, ...] = ()
    chosen: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        stages = range(len(self.plans)) if self.chosen is None else self.chosen
        if len(stages) != len(self.milestones) + 1:
            raise ValueError(
                f"{len(stages)} plans and {len(self.milestones)} milestones: each plan but the first has one."
            )
        if stages[0] != 0 or not set(stages) <= set(range(len(self.plans))):
            raise ValueError(f"chosen={list(stages)}: the places of {len(self.plans)} plans, the first of them first.")
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) < 1:
            raise ValueError(f"milestones={list(self.milestones)}: they must be positive and increasing.")

    @classmethod
    def of(cls, plan: BatchPlan | BatchRamp) -> BatchRamp:
        """A single plan as a ramp with one stage; a ramp is returned unchanged."""
        return plan if isinstance(plan, BatchRamp) else cls((plan,))

    @property
    def max_micro_batch_size(self) -> int:
        """Samples of the largest micro-batch over all plans."""
        return max(plan.max_micro_batch_size for plan in self.plans)

    def capped(self, max_micro_batch_size: int) -> BatchRamp:
        """The same global batches, split evenly into micro-batches of at most `max_micro_batch_size` samples.

        >>> ramp = BatchRamp.of(BatchPlan.solve(global_batch_size=10, world_size=1)).capped(4)
        >>> ramp.plans[0].micro_batch_sizes
        (4, 3, 3)
        """
        plans = [
            plan
            if plan.max_micro_batch_size <= max_micro_batch_size
            else BatchPlan.solve(
                global_batch_size=plan.global_batch_size,
                world_size=plan.world_size,
                max_micro_batch_size=max_micro_batch_size,
            )
            for plan in self.plans
        ]
        return replace(self, plans=tuple(plans))

    def undecided(self) -> BatchRamp:
        """The same plans before a run has chosen among them: the first one, as long as `then` names no other."""
        return replace(self, milestones=(), chosen=(0,))

    def then(self, samples_seen: int, place: int) -> BatchRamp:
        """The same ramp up to `samples_seen`, and `plans[place]` from there on.

        >>> small, large = (BatchPlan.solve(global_batch_size=size, world_size=1) for size in (4, 10))
        >>> ramp = BatchRamp((small, large), (6,)).undecided().then(8, 1)
        >>> [ramp.at(position).global_batch_size for position in (0, 7, 8, 100)], ramp.num_steps(total_samples=29)
        ([4, 4, 10, 10], 4)
        """
        stages = range(len(self.plans)) if self.chosen is None else self.chosen
        return replace(self, milestones=(*self.milestones, samples_seen), chosen=(*stages, place))

    def at(self, samples_seen: int) -> BatchPlan:
        """The plan of the step that starts after `samples_seen` samples."""
        return self.plans[self.stage_at(samples_seen)]

    def stage_at(self, samples_seen: int) -> int:
        """Index in `plans` of the plan at `samples_seen`."""
        stage = bisect_right(self.milestones, samples_seen)
        return stage if self.chosen is None else self.chosen[stage]

    @property
    def plans_in_order(self) -> tuple[BatchPlan, ...]:
        """The plan of each stage."""
        return self.plans if self.chosen is None else tuple(self.plans[place] for place in self.chosen)

    def steps(self, samples_seen: int, num_steps: int) -> Iterator[tuple[int, BatchPlan]]:
        """(samples consumed before it, plan) of `num_steps` steps, the first of which starts after `samples_seen`."""
        for _ in range(num_steps):
            plan = self.at(samples_seen)
            yield samples_seen, plan
            samples_seen += plan.global_batch_size

    def samples_of_steps(self, num_steps: int) -> int:
        """Samples that the first `num_steps` steps of a run consume.

        >>> small, large = (BatchPlan.solve(global_batch_size=size, world_size=1) for size in (4, 10))
        >>> [BatchRamp((small, large), (6,)).samples_of_steps(number) for number in (0, 2, 3, 4)]
        [0, 8, 18, 28]
        """
        position = 0
        for plan, end in zip(self.plans_in_order, (*self.milestones, None), strict=True):
            size = plan.global_batch_size
            count = num_steps if end is None else min(num_steps, max(-(-(end - position) // size), 0))
            position, num_steps = position + count * size, num_steps - count
        return position

    def num_steps(self, total_samples: int, samples_seen: int = 0) -> int:
        """Whole steps in a run of `total_samples` from `samples_seen` on; the remainder is less than the next batch.

        >>> small, large = (BatchPlan.solve(global_batch_size=size, world_size=1) for size in (4, 10))
        >>> [BatchRamp((small, large), (6,)).num_steps(29, samples_seen) for samples_seen in (0, 5, 6, 20)]
        [4, 3, 2, 0]
        """
        return sum(count for _, _, count in self.stages(total_samples, samples_seen))

    def samples_after(self, total_samples: int) -> int:
        """Samples that the whole steps of a run of `total_samples` consume."""
        position, plan, count = self.stages(total_samples)[-1]
        return position + count * plan.global_batch_size

    @property
    def plans_of_choice(self) -> tuple[BatchPlan, ...]:
        """The plans that a run may still choose, whatever stage it is in; none where all is known beforehand."""
        return () if self.chosen is None else self.plans

    def stages(self, total_samples: int, samples_seen: int = 0) -> list[tuple[int, BatchPlan, int]]:
        """(samples consumed before it, plan, steps) of each stage from `samples_seen` on.

        Empty stages after the first are omitted.
        """
        stages: list[tuple[int, BatchPlan, int]] = []
        position = samples_seen
        for plan, end in zip(self.plans_in_order, (*self.milestones, total_samples), strict=True):
            size = plan.global_batch_size
            # A step that begins before a milestone still uses this plan; no step may pass the end of the run.
            until_milestone = max(-(-(end - position) // size), 0)
            count = min(until_milestone, max(total_samples - position, 0) // size)
            if count or not stages:
                stages.append((position, plan, count))
            position += count * size
            if count < until_milestone:
                break
        return stages


def totals_in_place_of_decay(
    total: int, *, num_milestones: int, gamma: float, max_total: int | None, exponent: float
) -> list[int]:
    """Batch size from each milestone on that has the effect of multiplying the learning rate by `gamma` there.

    Under a scaling rule lr ~ B^p, runs with equal lr / B^p are equivalent. So instead of multiplying the rate by
    gamma, multiply the batch by gamma^(-1/p): 1 / gamma under the linear rule, 1 / gamma^2 under the square root.

    Source for the linear rule: Smith, Kindermans, Ying, Le 2018, "Don't decay the learning rate, increase the batch
    size", section 3; for the square root of adaptive methods: Malladi et al. 2022, "On the SDEs and scaling rules for
    adaptive gradient algorithms".

    Args:
        total: samples per step before the first milestone.
        num_milestones: number of milestones.
        gamma: factor of the rate at each milestone, in (0, 1).
        max_total: largest batch allowed, None for no limit; Smith et al. stop at a tenth of the training set.
        exponent: p of the scaling rule, above 0; see `scaling.RATE_EXPONENTS`.

    >>> totals_in_place_of_decay(128, num_milestones=3, gamma=0.2, max_total=5000, exponent=1.0)
    [640, 3200, 5000]
    >>> totals_in_place_of_decay(128, num_milestones=2, gamma=0.2, max_total=None, exponent=0.5)
    [3200, 80000]
    """
    sizes = [total / _power(gamma, (number + 1) / exponent) for number in range(num_milestones)]
    return [round(size if max_total is None else min(size, max_total)) for size in sizes]


def decay_left_over(total: int, totals: Sequence[int], *, gamma: float, exponent: float) -> list[float]:
    """Factor of the learning rate from each milestone on that completes the decay which the batch replaces.

    It is 1 where the batch has grown by exactly gamma^(-1 / exponent) each time, and less where it has grown less.

    >>> decay_left_over(128, [256, 300], gamma=0.5, exponent=1.0)
    [1.0, 0.5859375]
    >>> decay_left_over(128, [512, 800], gamma=0.5, exponent=0.5)
    [1.0, 0.625]
    """
    return [_power(gamma, number + 1) * (size / total) ** exponent for number, size in enumerate(totals)]


def _power(gamma: float, exponent: float) -> float:
    """gamma^exponent, but never 0: an underflow ends at the largest batch, not in a division by zero."""
    return float(max(gamma**exponent, sys.float_info.min))
