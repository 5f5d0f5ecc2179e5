"""`largebatch bench diagnostics`: what measuring the noise scale, or communication, costs a run on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

from omegaconf import DictConfig, OmegaConf

from largebatch.commands.bench_loop import STEPS_PER_ROUND, alternate, print_ratio, run_ours
from largebatch.commands.composition import run_verb


def main(arguments: Sequence[str]) -> int:
    """`bench diagnostics [KEY=VALUE ...]`; observers.noise_scale.every is 10 unless given. Returns the exit code.

    With observers.communication.every both are measured; with noise_scale.every=null, communication alone.
    """
    return run_verb("bench", run, ["length=100000steps", "observers.noise_scale.every=10", *arguments])


def run(config: DictConfig, overrides: list[str]) -> int:
    """Alternate rounds with and without the observers in one run and print the median ratio with its spread."""
    import os

    from largebatch.build import open_job
    from largebatch.interruption import StopRequest
    from largebatch.loop import Observer
    from largebatch.observers import CommunicationObserver, MetricsObserver, NoiseScaleObserver
    from largebatch.prepare import prepare

    measured = _intervals(config)
    with tempfile.TemporaryDirectory(prefix="largebatch-bench-") as folder:
        OmegaConf.update(config, "run.root", folder)
        OmegaConf.update(config, "observers.progress", False)
        prepared = prepare(config, os.environ)
        with StopRequest() as stop, open_job(prepared, stop, overrides) as job:
            metrics = [one for one in job.run.observers if isinstance(one, MetricsObserver)]
            live = [one for one in job.run.observers if isinstance(one, (NoiseScaleObserver, CommunicationObserver))]

            def round_with(*observers: Observer) -> Callable[[], float]:
                def run_round() -> float:
                    job.run.norms_every = job.run.communication_every = None  # an observer that is there asks for them
                    job.run.observers = list(observers)
                    return run_ours(job)

                return run_round

            times = alternate(round_with(*metrics, *live), round_with(*metrics))
            if job.run.runtime.is_main:
                rows = ("with", f"measured: {measured}"), ("without", "the same loop")
                print_ratio(prepared, job, times, rows, title="bench diagnostics")
    return 0


def _intervals(config: DictConfig) -> str:
    """What is measured how often, for people.

    Raises:
        ConfigError: if that is nothing, or rounds would not be alike.
    """
    from largebatch.config import ConfigError

    intervals = {name: config.observers[name].every for name in ("noise_scale", "communication")}
    asked = {name: every for name, every in intervals.items() if every is not None}
    errors = [
        f"observers.{name}.every={every}: a round has {STEPS_PER_ROUND} steps, and each round must measure alike. "
        "Choose a divisor of that."
        for name, every in asked.items()
        if STEPS_PER_ROUND % every
    ]
    if not asked:
        errors.append("observers.noise_scale.every=null: there is nothing to measure. Give it or communication.every.")
    if errors:
        raise ConfigError(errors)
    return ", ".join(f"{name.replace('_', ' ')} every {every} steps" for name, every in asked.items())
