"""Tries micro-batches on all ranks together, by steps of the run that leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from torch import nn

from largebatch.batch.ramp import BatchRamp
from largebatch.distributed.gather import gather_floats
from largebatch.experiments.find_micro.meter import AllocatedOnGPU, CountedTensors, Meter
from largebatch.experiments.find_micro.search import largest_fitting
from largebatch.experiments.find_micro.settings import FindMicroConfig, Sizes
from largebatch.experiments.measure.weights import Weights
from largebatch.experiments.rewound import rewound
from largebatch.experiments.stopwatch import seconds_of
from largebatch.gradient.batch_stream import Loader
from largebatch.gradient.out_of_memory import Halving, MicroBatchTooLargeError, is_out_of_memory
from largebatch.gradient.rehearsal import Rehearsal
from largebatch.gradient.step import Measures, Step
from largebatch.models.modes import train_mode
from largebatch.run.checks.dry_run import fails_alone
from largebatch.run.parts import build_loader, build_run
from largebatch.run.prepare import Prepared
from largebatch.training.loop import Run, take_step
from largebatch.training.raised import RunFailedError
from largebatch.training.steps import Steps
from largebatch.training.weight_average import WeightAverage

_MANY = 2**31  # steps: more than all tries take


@dataclass(frozen=True)
class Try:
    """Steps with micro-batches of one size.

    Attributes:
        size: of the key that sets it; no micro-batch is larger.
        passes: forward and backward passes per step, on the rank with the most.
        short: ranks whose memory did not suffice.
        peaks: most bytes of tensors of each rank, until then.
        limits: that each rank has.
        speeds: samples per second of each timed step, of all ranks; none where it did not fit.
    """

    size: int
    passes: int
    short: tuple[int, ...]
    peaks: tuple[int, ...]
    limits: tuple[int, ...]
    speeds: tuple[float, ...] = ()

    @property
    def fits(self) -> bool:
        """On all ranks."""
        return not self.short

    @property
    def speed(self) -> float:
        """Median of the speeds."""
        return median(self.speeds)


def run_tries(prepared: Prepared, weights: Weights, options: FindMicroConfig, sizes: Sizes) -> list[Try]:
    """Tries of all sizes that a search for the largest needs, in its order; the same on every rank.

    Afterwards weights, buffers, gradients, modes, generators and the loss scale are bit for bit as before, also after
    an error or Ctrl-C. The guard and observers do not run; an average of the weights is kept, for its memory.

    Raises:
        RunFailedError: if a rank had room for the passes of a step, and none for the reduction of its gradient.
    """
    tries, trial = [], _Trial(prepared, weights, options, sizes)

    def fits(size: int) -> bool:
        tries.append(trial.take(size))
        return tries[-1].fits

    largest_fitting(sizes.sizes, sizes.start, fits)
    return tries


def sizes_for(sizes: Sizes, prepared: Prepared, weights: Weights) -> Sizes:
    """Those that the model takes; all ranks call this, and have the same."""
    alone = fails_alone(
        prepared.config, prepared.numbers, prepared.train, prepared.augment, weights.module, prepared.loss
    )
    return sizes.in_pairs() if any(row[0] for row in gather_floats(weights.runtime, [alone])) else sizes


class _Trial:
    """One run, whose steps are taken in micro-batches of any size."""

    def __init__(self, prepared: Prepared, weights: Weights, options: FindMicroConfig, sizes: Sizes) -> None:
        own, self._runtime = replace(prepared, model=weights.module), weights.runtime
        self._prepared, self._options, self._sizes, runtime = own, options, sizes, weights.runtime
        self._feeds_gpu = runtime.device.type == "cuda"
        self._meter = _meter(weights, options)
        average = [] if prepared.numbers.average is None else [WeightAverage(prepared.numbers.average)]
        losses = [one for one in (prepared.loss, prepared.measured_loss) if isinstance(one, nn.Module)]
        with self._meter.counting():
            self._meter.watch(
                one for part in (weights.module, *losses) for one in [*part.parameters(), *part.buffers()]
            )
            plan = sizes.plan(sizes.start)
            loader = build_loader(own, runtime.rank, plan=plan, num_workers=0)
            run = build_run(own, runtime, loader, plan=plan, num_steps=_MANY, is_guarded=False, observers=average)
            for one in average:
                one.begin(run.module)
        gradient = run.gradient.once if isinstance(run.gradient, Halving) else run.gradient
        self._run, self._rehearsal = replace(run, gradient=gradient), Rehearsal(runtime, gradient)

    def take(self, size: int) -> Try:
        """Steps of this size, until one does not fit."""
        plan, always = self._sizes.plan(size), self._run.steps.always
        loader = _Loading(build_loader(self._prepared, self._runtime.rank, plan=plan, num_workers=0), self._meter)
        steps = Steps(self._run.steps.batches, self._run.steps.lr_at, _MANY, seed=self._run.steps.seed, always=always)
        self._meter.restart()
        with rewound(self._run, self._prepared, steps, on_host=True) as test:
            train_mode(test.module)
            update = _Update(test.update)
            test.update = update  # type: ignore[assignment]
            steps.batches.begin(0, 1, loader=loader, ramp=BatchRamp.of(plan))
            found = Try(size, plan.grad_accum_steps, (), (), ())
            for _ in range(self._options.warmup):
                found = self._warm_up(found, test, update)
                if not found.fits:
                    return found
            return self._timed(found, test, update)

    def _warm_up(self, found: Try, test: Run, update: _Update) -> Try:
        """A step whose passes were rehearsed: a rank that fails in them leaves no other in a collective."""
        step = test.steps.next()
        assert step is not None
        test.steps.batches.begin(step.samples_seen, 1)
        with self._meter.counting(limits=True):
            fits = self._rehearsal(step)
        found, _ = self._agreed(found, fits)
        if not found.fits:
            return found
        test.steps.batches.begin(step.samples_seen, 1)
        with self._meter.counting():
            fits = self._real(test, step, update)
        return self._agreed(found, fits)[0]

    def _timed(self, found: Try, test: Run, update: _Update) -> Try:
        """The same for steps that load as the run does; the first of them fills the loader, and is not timed."""
        loader: Loader = build_loader(
            self._prepared, self._runtime.rank, plan=self._sizes.plan(found.size), feeds_gpu=self._feeds_gpu
        )
        seen = self._options.warmup * self._sizes.global_batch_size
        test.steps.batches.begin(seen, 1 + self._options.steps, loader=loader)
        seconds, device = [], self._runtime.device
        for _ in range(1 + self._options.steps):
            step = test.steps.next()
            assert step is not None
            call = _Kept(partial(self._real, test, step, update))
            own_s = seconds_of(call, str(device))
            found, slowest = self._agreed(found, call.result, own_s)
            if not found.fits:
                return found
            seconds.append(slowest)
        return replace(found, speeds=tuple(self._sizes.global_batch_size / one for one in seconds[1:]))

    def _real(self, test: Run, step: Step, update: _Update) -> bool:
        """Take a step; whether it fitted on this rank."""
        rank, world_size = self._runtime.rank, self._runtime.world_size
        try:
            take_step(test, step)
        except MicroBatchTooLargeError as error:  # on every rank
            return rank not in error.ranks
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if world_size > 1:
                raise RunFailedError(
                    f"Out of memory on rank {rank} while the ranks summed their gradients, in micro-batches of at most "
                    f"{step.plan.max_micro_batch_size} samples whose passes had fitted. The other ranks wait for it, "
                    f"and no step can follow. Raise find_micro.headroom={self._options.headroom}."
                ) from error
            return False
        return update.fits

    def _agreed(self, found: Try, fits: bool, seconds: float = 0.0) -> tuple[Try, float]:
        """The try with what all ranks say of a step, the same on each, and the seconds of the slowest."""
        if not fits:
            self._run.module.zero_grad()
        peak, limit = self._meter.peak(), self._meter.limit
        table = gather_floats(self._runtime, [not fits or peak > limit, peak, limit, seconds])
        is_short, peaks, limits, times = zip(*table, strict=True)
        short = tuple(rank for rank, one in enumerate(is_short) if one)
        return replace(found, short=short, peaks=_ints(peaks), limits=_ints(limits)), max(times)


class _Loading:
    """A loader beside the limit of a meter."""

    def __init__(self, own: Loader, meter: Meter) -> None:
        self._own, self._meter, self.replan = own, meter, own.replan

    def micro_batches(self, samples_seen: int, num_steps: int) -> Iterator[Any]:
        """See `Loader`."""
        own = iter(self._own.micro_batches(samples_seen, num_steps))
        while True:
            with self._meter.loading():
                part = next(own, None)
            if part is None:
                return
            yield part


class _Kept:
    """A call whose result is kept."""

    def __init__(self, call: Callable[[], bool]) -> None:
        self._call, self.result = call, False

    def __call__(self) -> None:
        self.result = self._call()


def _meter(weights: Weights, options: FindMicroConfig) -> Meter:
    if weights.runtime.device.type == "cuda":
        return AllocatedOnGPU(weights.runtime.device, options.memory, headroom=options.headroom)
    assert options.memory is not None, "refused before"
    return CountedTensors(options.usable(options.memory))


def _ints(values: Sequence[float]) -> tuple[int, ...]:
    return tuple(map(int, values))


class _Update:
    """The update of a run, in which a rank may run out of memory: behind it all ranks meet again."""

    guard, measures = None, Measures.NONE

    def __init__(self, own: Any) -> None:
        self._own, self.fits = own, True

    def begin(self) -> None:
        """See `Plain`."""
        self.fits = True
        self._own.begin()

    def __call__(self, run: Any, batch: Any, sums: Any) -> None:
        """See `Plain`."""
        try:
            self._own(run, batch, sums)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.fits = False
