"""`largebatch bench diagnostics`: what measuring the noise scale costs a run on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

from omegaconf import DictConfig, OmegaConf

from largebatch.commands.bench_loop import STEPS_PER_ROUND, alternate, print_ratio, run_ours
from largebatch.commands.composition import run_verb


def main(arguments: Sequence[str]) -> int:
    """`bench diagnostics [KEY=VALUE ...]`; observers.noise_scale.every is 10 unless given. Returns the exit code."""
    return run_verb("bench", run, ["length=100000steps", "observers.noise_scale.every=10", *arguments])


def run(config: DictConfig, overrides: list[str]) -> int:
    """Alternate rounds with and without the observer in one run and print the median ratio with its spread."""
    import os

    from largebatch.build import open_job
    from largebatch.config import ConfigError
    from largebatch.interruption import StopRequest
    from largebatch.observers import MetricsObserver, NoiseScaleObserver
    from largebatch.prepare import prepare

    every = config.observers.noise_scale.every
    if every is None or STEPS_PER_ROUND % every:
        raise ConfigError(
            [f"observers.noise_scale.every={every}: a round has {STEPS_PER_ROUND} steps, and each round must measure "
             "alike. Choose a divisor of that."]
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="largebatch-bench-") as folder:
        OmegaConf.update(config, "run.root", folder)
        OmegaConf.update(config, "observers.progress", False)
        prepared = prepare(config, os.environ)
        with StopRequest() as stop, open_job(prepared, stop, overrides) as job:
            metrics = [one for one in job.run.observers if isinstance(one, MetricsObserver)]
            noise_scale = [one for one in job.run.observers if isinstance(one, NoiseScaleObserver)]

            def round_with(*observers: MetricsObserver | NoiseScaleObserver) -> Callable[[], float]:
                def run_round() -> float:
                    job.run.norms_every = None  # an observer that is there asks for them
                    job.run.observers = list(observers)
                    return run_ours(job)

                return run_round

            times = alternate(round_with(*metrics, *noise_scale), round_with(*metrics))
            if job.run.runtime.is_main:
                rows = ("with", f"the noise scale measured every {every} steps"), ("without", "the same loop")
                print_ratio(prepared, job, times, rows, title="bench diagnostics")
    return 0
