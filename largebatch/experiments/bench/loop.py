"""`largebatch bench loop`: the step time of our loop against a hand-written one and accelerate's, on this machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf

from largebatch.diagnostics.intervals import median_interval

if TYPE_CHECKING:
    from largebatch.distributed.runtime import Runtime
    from largebatch.experiments.bench.rival_loops import Case
    from largebatch.run.build import OpenRun
    from largebatch.run.prepare import Prepared

# Many short rounds: a busy machine drifts within seconds, and all loops of a round should meet the same drift.
MOST_ROUNDS, FEWEST_ROUNDS, WARMUP_ROUNDS, BUDGET_S = 60, 15, 3, 120
MOST_STEPS, ROUND_S = 20, 0.4  # of a round of one loop
MOST_BYTES = 4 * 2**30  # of a rival's training set in memory

Loop = Callable[[int], object]
"""Takes a number of optimizer steps."""


def measure(config: DictConfig, overrides: list[str]) -> int:
    """Alternate rounds of the loops in one process group; print medians of step times and of ratios. Returns 0."""
    import os

    from largebatch.experiments.bench.rival_loops import accelerate_loop, torch_loop
    from largebatch.run.build import open_run
    from largebatch.run.config.reading import ConfigError
    from largebatch.run.prepare import prepare
    from largebatch.training.observers import MetricsObserver

    with tempfile.TemporaryDirectory(prefix="largebatch-bench-") as folder:
        OmegaConf.update(config, "run.root", folder)
        OmegaConf.update(config, "observers.progress", False)
        prepared = prepare(config, os.environ)
        if problems := _without_rival(prepared):
            raise ConfigError(problems)
        with open_run(prepared, lambda: False, overrides) as opened:
            # Rows and trackers belong to the loop; evaluation and checkpoints are work of their own.
            observers = [one for one in opened.run.observers if isinstance(one, MetricsObserver)]
            opened.run = replace(opened.run, observers=observers)
            loops: dict[str, Loop] = {
                "our loop": lambda num_steps: run_ours(opened, num_steps),
                "hand-written loop": torch_loop(_case(prepared, opened)),
                "accelerate's loop": accelerate_loop(_case(prepared, opened)),
            }
            rounds, times = alternate(opened.run.runtime, loops)
            if opened.run.runtime.is_main:
                _print(prepared, opened, rounds, times)
    return 0


def _without_rival(prepared: Prepared) -> list[str]:
    """Why nobody else's loop does the same: an error for each setting."""
    from largebatch.experiments.bench.rival_loops import torch_loss
    from largebatch.gradient.choices import Ability
    from largebatch.run.config.combinations import refusals

    config, plan = prepared.config, prepared.numbers.plan
    problems = refusals("the hand-written loop", Ability.OWN_LOSSES, config, prepared.loss)
    if not problems and torch_loss(prepared.loss) is None:
        problems.append(
            f"loss._target_={config.loss['_target_']}: the rivals are written for the plain means of loss="
            "cross_entropy, next_token and squared_error, without weights or shifted labels. Choose one of them."
        )
    if prepared.augment is not None:
        problems.append(
            "data.augment: the rivals do not augment, so they would do less. Use data.augment.crop_padding=0 "
            "data.augment.flip=false data.augment.cutout=0."
        )
    if config.precision.compute not in ("fp32", "bf16"):
        problems.append(f"precision.compute={config.precision.compute}: the rivals are written for fp32 and bf16.")
    sizes = {part.size for rank in range(plan.world_size) for part in plan.micro_batches(rank)}
    counts = {len(plan.micro_batches(rank)) for rank in range(plan.world_size)}
    if len(sizes) > 1 or len(counts) > 1:
        problems.append(
            f"batch.total={plan.global_batch_size}: makes micro-batches of {sorted(sizes)} samples, {sorted(counts)} "
            "on a rank. The rivals need equal ones: choose a batch.total that ranks and micro-batches divide."
        )
    item = prepared.train[0][0]
    if not hasattr(item, "nbytes") or len(prepared.train) * item.nbytes > MOST_BYTES:
        problems.append(
            f"data={config.data.name}: the rivals hold the training set as one tensor of at most "
            f"{MOST_BYTES / 2**30:g} GiB. Use data.limit."
        )
    return problems


def _case(prepared: Prepared, opened: OpenRun) -> Case:
    """The same work for a rival: a model and an optimizer of its own, all samples as plain tensors."""
    import torch
    from torch import Tensor

    from largebatch.data import evaluation_batches
    from largebatch.experiments.bench.rival_loops import Case, torch_loss
    from largebatch.run.parts import own_copy

    own, plan, runtime = own_copy(prepared), prepared.numbers.plan, opened.run.runtime
    loss = torch_loss(prepared.loss)
    assert loss is not None, "refused"
    batches = list(evaluation_batches(prepared.train, np.arange(len(prepared.train)), 4096))
    parts = plan.micro_batches(runtime.rank)
    return Case(
        own.model,
        own.optimizer,
        loss,
        torch.cat([cast(Tensor, batch.inputs) for batch in batches]),  # dicts are refused
        torch.cat([batch.targets for batch in batches]),
        micro_batch_size=parts[0].size,
        num_micro_batches=len(parts),
        device=runtime.device,
        autocast=torch.bfloat16 if prepared.config.precision.compute == "bf16" else None,
        memory_format=torch.channels_last if prepared.decisions.channels_last.value else torch.preserve_format,
        compile=bool(prepared.config.precision.compile),
        clip_norm=prepared.config.clip_norm,
    )


def run_ours(opened: OpenRun, num_steps: int) -> None:
    """Take so many steps of our loop."""
    from largebatch.training.loop import train

    opened.run.steps.end_after(opened.run.progress.step + num_steps)
    train(opened.run)


@dataclass(frozen=True)
class Rounds:
    """How often the loops alternate, and how many steps each takes in a round."""

    number: int
    num_steps: int

    @classmethod
    def fitting(cls, seconds_per_step: float, num_loops: int) -> Rounds:
        """Short rounds, as many as `BUDGET_S` allows.

        >>> Rounds.fitting(0.01, 3), Rounds.fitting(1.0, 3)
        (Rounds(number=60, num_steps=20), Rounds(number=40, num_steps=1))
        """
        num_steps = max(1, min(MOST_STEPS, round(ROUND_S / seconds_per_step)))
        number = int(BUDGET_S / (seconds_per_step * num_steps * num_loops))
        return cls(max(FEWEST_ROUNDS, min(MOST_ROUNDS, number)), num_steps)


def alternate(runtime: Runtime, loops: dict[str, Loop]) -> tuple[Rounds, dict[str, list[float]]]:
    """Seconds per step of each loop, one number a round; warm-up rounds of one step are left out.

    Every round begins with the next loop, so that a drift of the machine favours none.
    """
    first_s = [_seconds_per_step(runtime, loop, 1) for _ in range(WARMUP_ROUNDS) for loop in loops.values()]
    rounds = Rounds.fitting(runtime.broadcast(statistics.median(first_s)), len(loops))
    names = list(loops)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds.number):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(_seconds_per_step(runtime, loops[name], rounds.num_steps))
    return rounds, times


def _seconds_per_step(runtime: Runtime, loop: Loop, num_steps: int) -> float:
    from largebatch.diagnostics.communication.rank_clocks import meet

    meet(runtime)
    started = time.perf_counter()
    loop(num_steps)
    meet(runtime)
    return (time.perf_counter() - started) / num_steps


def _print(prepared: Prepared, opened: OpenRun, rounds: Rounds, times: dict[str, list[float]]) -> None:
    from largebatch.records.trackers import print_plan

    plan, runtime = prepared.numbers.plan, opened.run.runtime
    ours, *rivals = times
    parts = plan.micro_batches(0)
    rows = [
        ("case", f"{prepared.config.model['_target_']} on {prepared.config.data.name}", "model, data"),
        ("job", f"batch {plan.global_batch_size} on {plan.world_size} ranks, {runtime.device}, "
         f"{len(parts)} x {parts[0].size} on a rank", "batch, launcher"),
        *((name, f"{1000 * statistics.median(seconds):.2f} ms", f"step: median of {rounds.number} alternating rounds "
           f"of {rounds.num_steps}" + (", logging on" if name == ours else "")) for name, seconds in times.items()),
        *((f"ours / {name}", *ratio_cells(times[ours], times[name])) for name in rivals),
    ]  # fmt: skip
    print_plan(rows, title="bench loop")


def ratio_cells(ours: Sequence[float], theirs: Sequence[float]) -> tuple[str, str]:
    """Median ratio of step times, and its spread over rounds.

    >>> ratio_cells([2.0, 3.0, 4.0, 2.2], [2.0, 2.0, 2.0, 2.0])
    ('1.300', 'median, 95% interval 1.000 to 2.000; quartiles 1.100 and 1.500')
    """
    ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True))
    quarter = len(ratios) // 4
    low, high = median_interval(ratios)
    return (
        f"{statistics.median(ratios):.3f}",
        f"median, 95% interval {low:.3f} to {high:.3f}; quartiles {ratios[quarter]:.3f} and {ratios[-quarter - 1]:.3f}",
    )
