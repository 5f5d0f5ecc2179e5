"""The gradient noise scale of a run while it trains, and what it says about the batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from largebatch.diagnostics import NoiseScale, NoiseScaleEstimator, moments_of_step
from largebatch.gradient.step import Measures, Step
from largebatch.training.loop import Observer, Run
from largebatch.training.row_log import RowLog
from largebatch.training.step_report import StepReport


class NoiseScaleObserver(Observer):
    """Measures every `every` steps and logs a row each time.

    `noise_scale/trace` and `noise_scale/grad_sq_norm` are running means. With enough evidence the row also has
    `noise_scale/b_simple` in samples (McCandlish et al. 2018), its 95 % interval `noise_scale/ci_low` to
    `noise_scale/ci_high`, and the efficiencies at the present batch. `noise_scale/GROUP/...` are the same of groups of
    parameters, without the efficiencies, which belong to a batch and not to a group.

    If the gradient was made with the optimizer's geometry, the row also has `noise_scale/optimizer/...`: the same in
    the inner product of the preconditioner (`largebatch.optim.OptimizerGeometry`).

    Args:
        rows: for the rows.
        every: steps between measurements.
        window: measurements that count.
        groups: of parameters, each in one of them at most: those that the gradient was made with.

    Attributes:
        latest: of all parameters; None before the first measurement.
        latest_of_groups: of each group.
        latest_of_optimizer: of all parameters in the optimizer's geometry; None unless it is measured.
    """

    def __init__(
        self, rows: RowLog, *, every: int, window: int, groups: Mapping[str, Sequence[nn.Parameter]] | None = None
    ) -> None:
        self._rows = rows
        self._every = every
        self._groups = groups or {}
        self._estimators = [NoiseScaleEstimator(window) for _ in range(1 + len(self._groups))]
        self._of_optimizer = [NoiseScaleEstimator(window) for _ in range(1 + len(self._groups))]
        self.latest: NoiseScale | None = None
        self.latest_of_groups: dict[str, NoiseScale] = {}
        self.latest_of_optimizer: NoiseScale | None = None

    def on_start(self, run: Run) -> None:
        """Check that what is measured is what is expected.

        Raises:
            ValueError: if the gradient was made with other groups.
        """
        made_with, own = run.gradient.norms.groups, tuple(self._groups)
        if made_with != own:
            raise ValueError(
                f"The observer tells the groups {list(own)} apart, and the gradient was made with {list(made_with)}. "
                "Give make_run the same groups."
            )

    def asks(self, step: Step) -> Measures:
        """The norms of micro-batch gradients."""
        return Measures.NORMS if step.is_due(self._every) else Measures.NONE

    def after_step(self, run: Run, report: StepReport) -> None:
        """Take the measurement of this step, if it made one."""
        norms = report.norms
        if norms is None:
            return
        found = norms.result()
        pairs = zip([*self._estimators, *self._of_optimizer], [*found, *norms.of_optimizer()], strict=False)
        for estimator, (weighted_sq_norm, grad_sq_norm) in pairs:
            moments = moments_of_step(
                weighted_sq_norm,
                grad_sq_norm,
                num_micro_batches=norms.num_parts,
                global_batch_size=report.plan.global_batch_size,
                num_samples=self._rows.num_samples,  # within an epoch none comes twice
            )
            estimator.add(*moments)
        whole, *of_groups = (estimator.estimate() for estimator in self._estimators)
        self.latest = whole
        self.latest_of_groups = {name: one for name, one in zip(self._groups, of_groups, strict=True) if one}
        if self.latest is not None:
            row = self.latest.row(report.plan.global_batch_size)
            for name, scale in self.latest_of_groups.items():
                row |= scale.row(prefix=f"noise_scale/{name}")
            self._rows.log(run.progress, {**row, **self._row_of_optimizer()})

    def _row_of_optimizer(self) -> dict[str, float]:
        self.latest_of_optimizer, *of_groups = (estimator.estimate() for estimator in self._of_optimizer)
        scales = {"noise_scale/optimizer": self.latest_of_optimizer}
        scales |= {f"noise_scale/optimizer/{name}": one for name, one in zip(self._groups, of_groups, strict=True)}
        return {key: value for prefix, one in scales.items() if one for key, value in one.row(prefix=prefix).items()}

    def state(self) -> dict[str, Any]:
        """The measurements of all parameters and of each group, as plain values."""
        in_geometry = [estimator.values() for estimator in self._of_optimizer]
        return {
            "groups": [[name, size] for name, size in self._sizes().items()],
            "measurements": [estimator.values() for estimator in self._estimators],
            **({"of_optimizer": in_geometry} if any(in_geometry) else {}),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; a group that was another one starts afresh."""
        nothing: list[Any] = [[]] * len(state["measurements"])
        self._load(self._estimators, state["groups"], state["measurements"])
        self._load(self._of_optimizer, state["groups"], state.get("of_optimizer") or nothing)
        self.latest, self.latest_of_optimizer = self._estimators[0].estimate(), self._of_optimizer[0].estimate()

    def _load(self, estimators: Sequence[NoiseScaleEstimator], groups: Any, measurements: Any) -> None:
        whole, *of_groups = measurements
        estimators[0].load(whole)
        saved = {(name, size): values for (name, size), values in zip(groups, of_groups, strict=True)}
        for one, estimator in zip(self._sizes().items(), estimators[1:], strict=True):
            estimator.load(saved.get(one, []))

    def _sizes(self) -> dict[str, int]:
        return {name: sum(one.numel() for one in group) for name, group in self._groups.items()}
