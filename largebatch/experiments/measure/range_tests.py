"""Range tests of a prepared run: over whole global batches, on all ranks together, for seeds and batch sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.diagnostics import Momentum, RangeCurve, RangeSettings, momentum_of, walk_rates
from largebatch.diagnostics.learning_rate.range_curve import HELD_STEPS
from largebatch.experiments.measure.weights import Weights
from largebatch.gradient.snapshots import rolled_back
from largebatch.models.modes import train_mode
from largebatch.run.initial_state import build_optimizer, initial_model
from largebatch.run.parts import build_loader, build_run
from largebatch.run.prepare import Prepared
from largebatch.training.loop import Progress, Run, take_step

Curves = dict[int, dict[int, RangeCurve]]


def run_range_tests(
    prepared: Prepared,
    weights: Weights,
    plans: Sequence[BatchPlan],
    settings: RangeSettings,
    seeds: Sequence[int],
) -> Curves:
    """One curve per batch size and seed; the same on every rank, as losses are summed over ranks before anybody looks.

    A seed means what it means to `largebatch train`: data order, augmentation, dropout and, unless the weights are
    those of a checkpoint, initial weights. Every test has a fresh optimizer. Weights, buffers, modes and random
    generators are as before, bit for bit, on every way out.

    Args:
        prepared: the run; of it scaling, schedule and length play no part.
        weights: where the tests start.
        plans: one per batch size.
        settings: of every test.
        seeds: of the tests.
    """
    run = _run(prepared, weights, plans[0])
    return {
        plan.global_batch_size: {seed: _range_test(run, prepared, weights, plan, settings, seed) for seed in seeds}
        for plan in plans
    }


def growing_momentum(prepared: Prepared) -> Momentum | None:
    """The momentum with which a loss that diverges grows on a quadratic; None where no limit can be told from it."""
    return None if prepared.config.clip_norm is not None else momentum_of(prepared.optimizer)


def _run(prepared: Prepared, weights: Weights, plan: BatchPlan) -> Run:
    """Without a guard: it would leave out the steps that diverge, which are what is looked for."""
    own = dataclasses.replace(prepared, model=weights.module)
    loader = build_loader(own, weights.runtime.rank, plan=plan)
    return build_run(own, weights.runtime, loader, plan=plan, num_steps=_MANY, is_guarded=False)


_MANY = 2**31  # steps: more than a test takes


def _range_test(
    run: Run, prepared: Prepared, weights: Weights, plan: BatchPlan, settings: RangeSettings, seed: int
) -> RangeCurve:
    loader = build_loader(prepared, run.runtime.rank, plan=plan, seed=seed)
    with _rewound(run, prepared, seed):
        if weights.checkpoint is None:
            run.module.load_state_dict(initial_model(prepared.config, seed, prepared.train).state_dict())
        train_mode(run.module)
        run.batches.begin(0, settings.num_steps + HELD_STEPS, loader=loader, ramp=BatchRamp.of(plan))

        def step_at(lr: float) -> float:
            run.lr_at = lambda _: lr
            return take_step(run).mean_loss

        return walk_rates(step_at, settings, hold=growing_momentum(prepared) is not None)


@contextmanager
def _rewound(run: Run, prepared: Prepared, seed: int) -> Iterator[None]:
    """A run at its start, with another seed, batch and optimizer; all is rolled back in the end.

    One run serves all tests: a distributed wrapper takes its hooks once.
    """
    run.seed, run.progress = seed, Progress()
    run.counted_step = run.counted_samples = 0
    run.optimizer = build_optimizer(prepared.config, run.module)
    loss_scale = run.runtime.loss_scale_state()
    try:
        with rolled_back(run.module, run.optimizer):
            yield
    finally:
        run.runtime.load_loss_scale_state(loss_scale)
