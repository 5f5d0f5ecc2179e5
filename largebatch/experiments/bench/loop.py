"""`largebatch bench loop`: the step time of our loop against a hand-written one, on this machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from largebatch.diagnostics.intervals import median_interval

if TYPE_CHECKING:
    from largebatch.run.build import OpenRun
    from largebatch.run.prepare import Prepared

# Many short rounds: a busy machine drifts within seconds, and both loops of a pair should meet the same drift.
ROUNDS, WARMUP_ROUNDS, STEPS_PER_ROUND = 60, 5, 20


def measure(config: DictConfig, overrides: list[str]) -> int:
    """Alternate rounds of both loops in one process group and print the median ratio with its spread; returns 0."""
    import os

    from largebatch.gradient.choices import Ability
    from largebatch.run.build import open_run
    from largebatch.run.config.combinations import refusals
    from largebatch.run.config.reading import ConfigError
    from largebatch.run.parts import own_copy
    from largebatch.run.prepare import prepare
    from largebatch.training.observers import MetricsObserver

    with tempfile.TemporaryDirectory(prefix="largebatch-bench-") as folder:
        OmegaConf.update(config, "run.root", folder)
        OmegaConf.update(config, "observers.progress", False)
        prepared = prepare(config, os.environ)
        if problems := refusals("the hand-written loop", Ability.OWN_LOSSES, prepared.config, prepared.loss):
            raise ConfigError(problems)
        rival = own_copy(prepared)
        with open_run(prepared, lambda: False, overrides) as opened:
            # Rows and trackers belong to the loop; evaluation and checkpoints are work of their own.
            observers = [one for one in opened.run.observers if isinstance(one, MetricsObserver)]
            opened.run = replace(opened.run, observers=observers)
            ours = partial(run_ours, opened)
            theirs = _hand_written_loop(rival, opened)
            times = alternate(ours, theirs)
            if opened.run.runtime.is_main:
                rows = (
                    ("our loop", f"rounds of {STEPS_PER_ROUND} steps, logging on"),
                    ("hand-written loop", "the same DDP"),
                )
                print_ratio(prepared, opened, times, rows, title="bench loop")
    return 0


def alternate(ours: Callable[[], float], theirs: Callable[[], float]) -> list[tuple[float, float]]:
    """(seconds of ours, seconds of theirs) of each round; warm-up rounds are left out."""
    rounds = [(ours(), theirs()) if number % 2 else _swapped(theirs, ours) for number in range(WARMUP_ROUNDS + ROUNDS)]
    return rounds[WARMUP_ROUNDS:]


def _swapped(first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float]:
    """Every other round starts with the other loop, so that a drift of the machine favours neither."""
    time_of_first = first()
    return second(), time_of_first


def run_ours(opened: OpenRun) -> float:
    """Run a round of our loop; returns seconds per step."""
    from largebatch.training.loop import train

    opened.run.steps.end_after(opened.run.progress.step + STEPS_PER_ROUND)
    return seconds_per_step(opened, lambda: train(opened.run))


def _hand_written_loop(own: Prepared, opened: OpenRun) -> Callable[[], float]:
    """The loop that a careful person writes for this one case: no logging, no checks, no accounting."""
    from torch.nn.parallel import DistributedDataParallel

    from largebatch.gradient.accumulation import forward
    from largebatch.run.parts import build_loader

    runtime, loss, optimizer = opened.run.runtime, own.loss, own.optimizer
    model = runtime.wrap(own.model)  # the same DDP: the loops are compared, not the wrappers
    plan = own.numbers.plan
    loader = build_loader(own, runtime.rank, plan=plan)
    num_parts, scale = len(plan.micro_batches(runtime.rank)), runtime.world_size / plan.global_batch_size
    batches = loader.micro_batches(0, (ROUNDS + WARMUP_ROUNDS) * STEPS_PER_ROUND)

    def steps() -> None:
        for _ in range(STEPS_PER_ROUND):
            optimizer.zero_grad()
            for part in range(num_parts):
                batch = next(batches)
                is_last = part == num_parts - 1
                if isinstance(model, DistributedDataParallel):
                    model.require_backward_grad_sync = is_last
                inputs, targets = runtime.place(batch.inputs), runtime.place_tensor(batch.targets)
                (loss.loss_per_sample(forward(model, inputs), targets).sum() * scale).backward()
            optimizer.step()

    return lambda: seconds_per_step(opened, steps)


def seconds_per_step(opened: OpenRun, function: Callable[[], object]) -> float:
    """Seconds per step of `function`, which makes the steps of a round, between two barriers."""
    import torch

    def settle() -> None:
        if opened.run.runtime.device.type == "cuda":
            torch.cuda.synchronize()
        opened.run.runtime.barrier()

    settle()
    started = time.perf_counter()
    function()
    settle()
    return (time.perf_counter() - started) / STEPS_PER_ROUND


def print_ratio(
    prepared: Prepared,
    opened: OpenRun,
    times: Sequence[tuple[float, float]],
    rows: tuple[tuple[str, str], tuple[str, str]],
    *,
    title: str,
) -> None:
    """Print medians of both sides and of their ratio; `rows` are their names and descriptions."""
    from largebatch.records.trackers import print_plan

    ratios = sorted(ours / theirs for ours, theirs in times)
    quarter = len(ratios) // 4
    low, high = median_interval(ratios)
    milliseconds = [f"{1000 * statistics.median(column):.2f} ms" for column in zip(*times, strict=True)]
    plan = prepared.numbers.plan
    runtime = opened.run.runtime
    print_plan(
        [
            ("case", f"{prepared.config.model['_target_']} on {prepared.config.data.name}", "model, data"),
            ("job", f"batch {plan.global_batch_size} on {plan.world_size} ranks, {runtime.device}", "batch, launcher"),
            *((name, value, f"median of {len(times)} alternating rounds of {STEPS_PER_ROUND} steps: {what}")
              for (name, what), value in zip(rows, milliseconds, strict=True)),
            ("ratio", f"{statistics.median(ratios):.3f}", f"median, 95% interval {low:.3f} to {high:.3f}; quartiles "
             f"{ratios[quarter]:.3f} and {ratios[-quarter - 1]:.3f}, range {ratios[0]:.3f} to {ratios[-1]:.3f}"),
        ],
        title=title,
    )  # fmt: skip
