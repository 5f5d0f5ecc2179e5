"""Branches of a run: several batch sizes from one point, over the same samples, each rolled back bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from largebatch.batch.ramp import BatchRamp
from largebatch.data import MicroBatchLoader
from largebatch.diagnostics.critical_batch.branches import Branches
from largebatch.diagnostics.gap.evaluation import sums_of_outputs
from largebatch.diagnostics.gap.gap import EvalSums
from largebatch.experiments.measure.branch_design import Branch, Design
from largebatch.experiments.measure.run_state import from_checkpoint
from largebatch.experiments.measure.weights import Weights
from largebatch.gradient.accumulation import forward
from largebatch.gradient.snapshots import preserving_buffers_and_rng, rolled_back
from largebatch.gradient.step import Measures
from largebatch.losses import Loss
from largebatch.models.modes import evaluating, train_mode
from largebatch.records.checkpoint import Checkpoint
from largebatch.run.parts import build_loader, build_run
from largebatch.run.prepare import Prepared
from largebatch.training.loop import Run, take_step
from largebatch.training.progress import Progress
from largebatch.training.steps import Steps

_MANY = 2**31  # steps: more than a branch takes
_TIMED = 2  # steps of a batch size before the estimate of the time; the first one may compile


def run_branches(
    prepared: Prepared, weights: Weights, design: Design, checkpoint: Checkpoint | None, say: Callable[[str], None]
) -> tuple[Branches, tuple[float, ...]]:
    """Train and evaluate all branches; every rank calls it and gets the same losses, and each batch's rate factor.

    Window w trains on the w-th stretch of `num_samples` samples of the run's order from the checkpoint on, and all of
    its branches start from the same weights, buffers and optimizer state, at the same place of the schedule. Weights,
    buffers, optimizer state, gradients, modes, random generators and loss scale are restored bit for bit, after an
    error or Ctrl-C too.

    Args:
        prepared: the run.
        weights: on their device; those of the checkpoint.
        design: see there.
        checkpoint: see `find_run_checkpoint`.
        say: told on rank 0 about the progress.

    Raises:
        ValueError: if the branch of the smallest batch diverged.
    """
    runtime = weights.runtime
    own = replace(prepared, model=weights.module)
    plan = design.branches[0][0].plan
    start = 0 if checkpoint is None else int(checkpoint.values["samples_seen"])
    with closing(build_loader(own, runtime.rank, plan=plan)) as loader:
        run = build_run(own, runtime, loader, plan=plan, num_steps=_MANY, is_guarded=False)
        trial = _Trial(run, loader, design, prepared.measured_loss, prepared.config.seed, start)
        told = say if runtime.is_main else lambda _: None
        with from_checkpoint(run, prepared, checkpoint):
            trial.announce(told)
            return trial.all_windows(told)


@dataclass
class _Trial:
    run: Run
    loader: MicroBatchLoader
    design: Design
    loss: Loss
    seed: int
    start: int

    def all_windows(self, say: Callable[[str], None]) -> tuple[Branches, tuple[float, ...]]:
        design, halfway = self.design, list[float]()
        chosen = self._chosen_rates(say)
        losses = np.empty((design.num_windows, len(design.branches)))
        started = time.perf_counter()
        for number in range(design.num_windows):
            for place, (rates, rate) in enumerate(zip(design.branches, chosen, strict=True)):
                half, losses[number, place] = self.branch(design.num_pilots + number, rates[rate])
                halfway += [half] * (place == 0)
            left = (time.perf_counter() - started) / (number + 1) * (design.num_windows - number - 1)
            shown = ", ".join(f"{loss:.4g}" for loss in losses[number])
            say(f"window {number + 1} of {design.num_windows}: losses {shown}; {left:.0f} s left")
        found = Branches(design.batch_sizes, losses, np.array(halfway), design.num_samples)
        return found, tuple(design.rate_factors[rate] for rate in chosen)

    def _chosen_rates(self, say: Callable[[str], None]) -> list[int]:
        """The rate with the lowest mean loss over the pilot windows, for each batch size.

        Other windows measure, so that the choice does not flatter a loss.
        """
        chosen = []
        for rates in self.design.branches:
            if len(rates) == 1:
                chosen.append(0)
                continue
            means = [
                np.mean([self.branch(window, branch)[1] for window in range(self.design.num_pilots)])
                for branch in rates
            ]
            chosen.append(int(np.argmin(means)))
            size, factor = rates[0].plan.global_batch_size, self.design.rate_factors[chosen[-1]]
            say(f"batch {size:,}: losses at each rate {', '.join(f'{one:.4g}' for one in means)}; takes {factor:g}")
        return chosen

    def branch(self, window: int, branch: Branch) -> tuple[float, float]:
        """Losses after half of the samples of the smallest batch, and after all; infinite if the branch diverged."""
        size = branch.plan.global_batch_size
        count, half = self.design.num_samples // size, math.inf
        with self._branched(window, branch) as test:
            for number in range(1, count + 1):
                if not self._step(test, is_last=number == count):
                    return half, math.inf
                if size == self.design.batch_sizes[0] and 2 * number == count:
                    half = self._evaluate(test, window)
            return half, self._evaluate(test, window)

    @contextmanager
    def _branched(self, window: int, branch: Branch, measures: Measures = Measures.NONE) -> Iterator[Run]:
        """The run at the start of a branch; everything is rolled back at the end."""
        run, ramp = self.run, BatchRamp.of(branch.plan)
        position = self.start + window * self.design.num_samples
        batches = run.steps.batches
        self.loader.replan(ramp)
        batches.ramp = ramp

        def lr_at(seen: int) -> float:
            return self.design.lr_at(seen - position + self.start) * branch.rate_scale

        steps = Steps(batches, lr_at, _MANY, seed=self.seed, always=run.steps.always | measures)
        test = replace(run, steps=steps, progress=Progress(samples_seen=position), scaled=branch.scaled)
        loss_scale = run.runtime.loss_scale_state()
        try:
            with rolled_back(run.module, run.optimizer):
                steps.end_after(self.design.num_samples // branch.plan.global_batch_size)
                steps.begin(test.progress)
                test.agreement.begin(test.progress)
                train_mode(test.module)
                yield test
        finally:
            run.runtime.load_loss_scale_state(loss_scale)
            run.gradient.statistics.forget()

    @staticmethod
    def _step(test: Run, *, is_last: bool) -> bool:
        """Take the next step; whether the branch is still sound, the same on every rank."""
        step = test.steps.next()
        assert step is not None
        status = take_step(test, step).status
        if is_last and status == "running":
            status = test.agreement.end(is_last=True)
        return status != "diverged"

    def _evaluate(self, test: Run, window: int) -> float:
        runtime, module = test.runtime, test.module
        table = EvalSums().to_tensor().to(runtime.device)
        merged = test.gradient.statistics.merged
        with merged(), preserving_buffers_and_rng(module), evaluating(module), torch.no_grad():
            for inputs, targets in self.design.shares[window].stream(runtime):
                table += sums_of_outputs(self.loss, forward(module, inputs), targets)
        loss = EvalSums.from_tensor(torch.tensor(runtime.start_sum(table).result(), dtype=torch.float64)).mean_loss
        return loss if math.isfinite(loss) else math.inf

    def announce(self, say: Callable[[str], None]) -> None:
        """Say what the measurement costs: steps, samples, and the time by a few steps and an evaluation."""
        design, sizes = self.design, self.design.batch_sizes
        counts = [design.num_samples // size for size in sizes]
        repeats = design.num_windows + design.num_pilots * len(design.rate_factors)
        small, large = (self._seconds(rates[0]) for rates in (design.branches[0], design.branches[-1]))
        slope = max(large - small, 0.0) / (sizes[-1] - sizes[0])
        steps_s = sum(count * (small + slope * (size - sizes[0])) for count, size in zip(counts, sizes, strict=True))
        started = time.perf_counter()
        self._evaluate(self.run, 0)
        evaluation_s = (len(sizes) + 1) * (time.perf_counter() - started)
        say(
            f"branches: {repeats * len(counts)} of {design.num_samples:,} samples each, {repeats * sum(counts):,} "
            f"steps in all, and their evaluations: about {repeats * (steps_s + evaluation_s):.0f} s"
        )

    def _seconds(self, branch: Branch) -> float:
        with self._branched(0, branch, Measures.LOSS) as test:
            seconds = math.inf
            for _ in range(min(_TIMED, self.design.num_samples // branch.plan.global_batch_size)):
                started = time.perf_counter()
                step = test.steps.next()
                assert step is not None
                float(take_step(test, step).mean_loss)  # waits for the device
                seconds = min(seconds, time.perf_counter() - started)
        return seconds
