"""Range tests of a prepared run: over whole global batches, on all ranks together, for seeds and batch sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.data import MicroBatchLoader
from largebatch.diagnostics import Momentum, RangeCurve, RangeSettings, momentum_of, walk_rates
from largebatch.diagnostics.learning_rate.range_curve import HELD_STEPS
from largebatch.experiments.measure.weights import Weights
from largebatch.gradient.snapshots import rolled_back
from largebatch.losses import units_are_fixed
from largebatch.models.modes import train_mode
from largebatch.run.initial_state import build_optimizer, initial_model
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
    run = _run(prepared, weights, plans[0], settings)
    return {
        plan.global_batch_size: {seed: _range_test(run, prepared, weights, plan, settings, seed) for seed in seeds}
        for plan in plans
    }


def growing_momentum(prepared: Prepared) -> Momentum | None:
    """The momentum with which a loss that diverges grows on a quadratic; None where no limit can be told from it."""
    return None if prepared.config.clip_norm is not None else momentum_of(prepared.optimizer)


def _run(prepared: Prepared, weights: Weights, plan: BatchPlan, settings: RangeSettings) -> Run:
    config, runtime = prepared.config, weights.runtime
    if config.precision.compile:
        weights.module.compile()
    return Run(
        runtime=runtime,
        model=runtime.wrap(weights.module),
        loss=prepared.loss,
        optimizer=prepared.optimizer,
        plan=plan,
        loader=_loader(prepared, runtime.rank, plan, config.seed),
        lr_at=lambda _: settings.lowest,
        num_steps=_MANY,
        fixed_units=units_are_fixed(prepared.loss, prepared.train),
        clip_norm=config.clip_norm,
        ordered=config.batch.reduction == "ordered",
        exact_batch_norm=config.batch_norm == "exact",
        compression=config.precision.gradient_compression,
        step_buffers=prepared.state.by_step,
        skips_parameters=bool(prepared.state.choices),
        log_every=_MANY,  # nobody reads gradient norms and exposed communication
    )


_MANY = 2**31  # steps: more than a test takes


def _range_test(
    run: Run, prepared: Prepared, weights: Weights, plan: BatchPlan, settings: RangeSettings, seed: int
) -> RangeCurve:
    loader = _loader(prepared, run.runtime.rank, plan, seed)
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


def _loader(prepared: Prepared, rank: int, plan: BatchPlan, seed: int) -> MicroBatchLoader:
    config, augment = prepared.config, prepared.augment
    return MicroBatchLoader(
        prepared.train,
        SampleOrder(len(prepared.train), seed),
        plan,
        rank,
        augment=None if augment is None else dataclasses.replace(augment, seed=seed),
        num_workers=config.data.num_workers,
        seed=seed,
        timeout_s=config.data.timeout_s,
    )
