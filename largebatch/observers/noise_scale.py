"""The gradient noise scale of a run while it trains, and what it says about the batch size."""

from __future__ import annotations

from largebatch.diagnostics import NoiseScale, NoiseScaleEstimator, moments_of_step
from largebatch.loop import Run, StepReport
from largebatch.observers.metrics import Journal
from largebatch.trackers import Row


class NoiseScaleObserver:
    """Measures every `every` steps and logs a row each time.

    `noise_scale/trace` and `noise_scale/grad_sq_norm` are running means; `noise_scale/value`, its interval
    `noise_scale/low` to `noise_scale/high`, in samples, and the efficiencies at the present batch follow when there is
    enough evidence.

    Args:
        journal: for the rows.
        every: steps between measurements.
        window: measurements that count.
    """

    def __init__(self, journal: Journal, *, every: int, window: int) -> None:
        self._journal = journal
        self._every = every
        self._estimator = NoiseScaleEstimator(window)
        self.latest: NoiseScale | None = None

    def on_start(self, run: Run) -> None:
        """Ask for the norms of micro-batch gradients."""
        run.norms_every = self._every

    def after_step(self, run: Run, report: StepReport) -> None:
        """Take the measurement of this step, if it made one."""
        if report.norms is None:
            return
        weighted_sq_norm, grad_sq_norm = report.norms.result()
        moments = moments_of_step(
            weighted_sq_norm,
            grad_sq_norm,
            num_micro_batches=len(report.plan.micro_batch_sizes),
            global_batch_size=report.plan.global_batch_size,
            num_samples=self._journal.num_samples,  # within an epoch none comes twice
        )
        self._estimator.add(*moments)
        self.latest = self._estimator.estimate()
        if self.latest is not None:
            self._journal.log(run.progress, row_of(self.latest, report.plan.global_batch_size))

    def on_end(self, run: Run, status: str) -> None:
        """Nothing is left over."""


def row_of(scale: NoiseScale, global_batch_size: int) -> Row:
    """What is logged of an estimate; keys of what is not known are left out."""
    row: Row = {"noise_scale/trace": scale.trace, "noise_scale/grad_sq_norm": scale.grad_sq_norm}
    samples, steps = scale.sample_efficiency(global_batch_size), scale.step_efficiency(global_batch_size)
    if scale.value is not None and scale.interval is not None and samples is not None and steps is not None:
        row |= {
            "noise_scale/value": scale.value,
            "noise_scale/low": scale.interval[0],
            "noise_scale/high": scale.interval[1],
            "noise_scale/sample_efficiency": samples,
            "noise_scale/step_efficiency": steps,
        }
    return row
