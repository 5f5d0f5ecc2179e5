"""The gradient noise scale in anybody's training loop: from the backward passes that it makes anyway."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from largebatch.diagnostics.noise.loop_hooks import listen, require_visible_gradients
from largebatch.diagnostics.noise.noise_scale import NoiseScale, NoiseScaleEstimator
from largebatch.diagnostics.noise.passes import BackwardPasses, Problem
from largebatch.diagnostics.noise.step_moments import MeasuredStep, PendingStep, Reduction, StepSums
from largebatch.distributed.pending_sum import start_sum


def track(
    model: nn.Module,
    *,
    reduction: Reduction = "mean",
    every: int = 1,
    window: int = 200,
    num_samples: int | None = None,
    group: dist.ProcessGroup | None = None,
    scaler: Any = None,
) -> NoiseTracker:
    """Measure the gradient noise scale of a training loop of your own; see `NoiseTracker`.

    Args:
        model: what the loop calls: a module, or one in `DistributedDataParallel`.
        reduction: of the loss of a micro-batch. "mean": over its samples, so that all micro-batches weigh the same.
            "sum": over its samples, with one divisor for the whole global batch.
        every: optimizer steps between measurements.
        window: latest measurements that count.
        num_samples: size of the training set, if no sample comes twice within an epoch; None: independent draws.
        group: ranks whose gradients the loop averages or adds by other means than DDP; None: those of DDP, else this
            process alone.
        scaler: the `torch.amp.GradScaler` of the loop. Moments of a scaled loss are in units of its scale without it.

    Raises:
        ValueError: if a gradient of the model cannot be seen: sharded or without parameters to train.

    Here the gradient of a sample x is w - x, with x standard normal in 4 dimensions and w = 1/2 in each: tr(Sigma) is
    4, |G|^2 is 1, and the noise scale 4 samples.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Linear(1, 4, bias=False)
    >>> _ = nn.init.constant_(model.weight, 0.5)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    >>> tracker = track(model)
    >>> for _ in range(200):
    ...     for micro_batch in torch.randn(2, 8, 4):  # gradient accumulation over two micro-batches of 8
    ...         loss = (model(torch.ones(8, 1)) - micro_batch).square().sum(dim=1).mean() / 2
    ...         (loss / 2).backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> print(tracker.noise_scale)
    4 samples (95 %: 3 to 5)
    >>> tracker.close()
    """
    return NoiseTracker(
        model, reduction=reduction, every=every, window=window, num_samples=num_samples, group=group, scaler=scaler
    )


class NoiseTracker:
    """Measures the noise scale from the backward passes of a loop; the loop stays as it is, and so do its results.

    A micro-batch is what the model gets between two backward passes; its number of samples is the first dimension of
    the first tensor (or `micro_batch`). The norm of its gradient is taken while autograd adds it to `.grad`.

    When an optimizer of the parameters steps, the gradient in `.grad` is read. If it was multiplied by one factor since
    (clipped by norm, unscaled, averaged), a few elements of it tell the factor, so norms are those before clipping. The
    same elements show whether it is the sum of the passes at all. In the steps that are measured, the ranks of DDP sum
    one vector of at most a few thousand numbers.

    A step that cannot be measured is left out, counted in `left_out`, and told once in a warning.

    Cost of a measured step: one read of the gradients for each pass and one more. Nothing waits for a device.

    The arguments are those of `track`. As a context manager it is closed on exit.

    Attributes:
        latest: the latest step that was measured, or None.
        left_out: reasons and numbers of steps without a measurement.
        num_steps: optimizer steps seen.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reduction: Reduction,
        every: int,
        window: int,
        num_samples: int | None,
        group: dist.ProcessGroup | None,
        scaler: Any,
    ) -> None:
        require_visible_gradients(model)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction={reduction!r}: must be 'mean' or 'sum'.")
        if every < 1 or window < 1:
            raise ValueError(f"every={every}, window={window}: both must be at least 1.")
        if group is None and isinstance(model, nn.parallel.DistributedDataParallel):
            group = model.process_group
        self._model, self._group, self._scaler = model, group, scaler
        self._world_size = 1 if group is None else dist.get_world_size(group)
        self._reduction, self._every, self._num_samples = reduction, every, num_samples
        self._estimator = NoiseScaleEstimator(window)
        self._passes: BackwardPasses | None = None
        self._pending: PendingStep | None = None
        self._has_begun, self._is_told_by_hand = False, False
        self._updated_by: int | None = None
        self.latest: MeasuredStep | None = None
        self.left_out: Counter[str] = Counter()
        self.num_steps = 0
        self._stop_listening = listen(model, on_forward=self._on_forward, on_update=self._on_update)

    @property
    def noise_scale(self) -> NoiseScale | None:
        """The estimate; None before the first measurement. It has a value and an interval with enough evidence.

        Any rank may read it at any time.

        Raises:
            ValueError: if no step could be measured, with the reasons.
        """
        self._settle()
        estimate = self._estimator.estimate()
        if estimate is None and self.left_out:
            reasons = "; ".join(f"{reason} ({count} steps)" for reason, count in self.left_out.items())
            raise ValueError(f"No step could be measured: {reasons}.")
        return estimate

    def micro_batch(self, num_samples: int) -> None:
        """Say that a micro-batch of so many samples begins; from then on the calls of the model do not count.

        For models whose first tensor does not have a sample per row, or that are called several times for one backward
        pass, or whose parts are called.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: a micro-batch has at least 1 sample.")
        self._is_told_by_hand = True
        self._begin(num_samples)

    def measure(self) -> None:
        """Measure now: for an update that is no step of a `torch.optim.Optimizer`. Call it before, on every rank."""
        passes, self._passes, self._has_begun = self._passes, None, False
        self.num_steps += 1
        if passes is None:
            return
        passes.end()
        self._settle()
        sums = StepSums.of(passes, self._reduction, self._world_size)
        scale = 1.0 if self._scaler is None else float(self._scaler.get_scale())
        self._pending = PendingStep(sums, start_sum(sums.values, self._world_size, self._group), scale)

    def state_dict(self) -> dict[str, Any]:
        """Measurements and counts, as plain values: alike on every rank."""
        self._settle()
        return {
            "num_steps": self.num_steps,
            "measurements": self._estimator.values(),
            "left_out": dict(self.left_out),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.num_steps = state["num_steps"]
        self._estimator.load(state["measurements"])
        self.left_out = Counter(state["left_out"])

    def close(self) -> None:
        """Leave model and optimizers alone; what was measured stays."""
        self._settle()
        self._stop_listening()
        if self._passes is not None:
            self._passes.end()
            self._passes = None

    def __enter__(self) -> NoiseTracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_forward(self, num_samples: int) -> None:
        if not self._is_told_by_hand:
            self._begin(num_samples)

    def _begin(self, num_samples: int) -> None:
        self._has_begun = True
        if self._passes is not None and self._passes.is_cleared():
            self._passes.end()
            self._passes = None
        if self._passes is None:
            if self.num_steps % self._every:
                return
            self._passes = BackwardPasses([one for one in self._model.parameters() if one.requires_grad])
        self._passes.expect(num_samples)

    def _on_update(self, optimizer: Optimizer) -> None:
        if self._has_begun:
            self._updated_by = id(optimizer)
            self.measure()
        elif self._updated_by in (None, id(optimizer)):  # not another one, after the same backward passes
            self._leave_out(Problem.NO_FORWARD)

    def _settle(self) -> None:
        """Take the measurement that was on its way between ranks."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        found = pending.result(self._num_samples)
        if isinstance(found, MeasuredStep):
            self.latest = found
            self._estimator.add(found.trace, found.grad_sq_norm)
        else:
            for problem in found:
                self._leave_out(problem)

    def _leave_out(self, problem: Problem) -> None:
        if problem.value not in self.left_out and (self._group is None or dist.get_rank(self._group) == 0):
            warnings.warn(f"A step is left out of the noise scale: {problem.value}.", stacklevel=2)
        self.left_out[problem.value] += 1
