"""Training and validation metrics in the same mode, and the generalization gap between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.data import EvaluationLoader
from largebatch.diagnostics.gap.evaluation import sums_of_outputs
from largebatch.diagnostics.gap.gap import EvalSums, generalization_gap
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import forward
from largebatch.losses import Loss
from largebatch.losses.coupled import is_coupled
from largebatch.losses.metrics import Metric
from largebatch.models.modes import evaluating
from largebatch.records.rows.augmented_gap import AUGMENTED_GAP
from largebatch.records.trackers import Row
from largebatch.training.loop import Observer, Run
from largebatch.training.observers.metric_sums import MetricSums
from largebatch.training.row_log import POSITION, RowLog
from largebatch.training.step_report import StepReport
from largebatch.training.weight_average import WeightAverage

_ALWAYS = ("eval/train_loss", "eval/val_loss", "gap/loss")  # whatever becomes of them
_BETTER: dict[str, Callable[[float, float], float]] = {"eval/val_loss": min, "eval/val_accuracy": max}
_BETTER |= {name.replace("/val_", "/ema_val_"): better for name, better in _BETTER.items()}


@dataclass
class EvaluationObserver(Observer):
    """Measures `eval/*` and `gap/*` every `every` samples (None: only at the end) and after the last step.

    A stop that is asked for meanwhile breaks it off, since the time that is left is for the checkpoint: the run ends
    there, and the one that goes on from this checkpoint begins with the evaluation. A run that is stopped between
    evaluations makes none either: its records are those of a run that was not.

    Both sets are read in eval mode without augmentation and without label smoothing, each example exactly once on any
    number of ranks. The training side is a fixed random subset as large as the validation set.

    A loss that couples samples is taken within evaluation batches of `micro_batch_size` samples at most, the same on
    any number of ranks and as equal in size as possible; it is not comparable with the training loss, which is taken
    within the global batch. Its standard errors take each batch as one draw, since the samples in it are correlated.

    The sums stay on the device: the host waits once for each set. Gradients are off, but not by inference mode: a model
    that caches a tensor in it, such as rotary angles, could not be trained any more.

    Attributes:
        train: training set without augmentation.
        validation: validation set.
        loss: the loss to measure with.
        every: samples between evaluations.
        micro_batch_size: samples per forward pass.
        loaders: of both sets, "train" and "val"; one that is missing loads in this process. If they leave out samples
            that cannot be loaded, the others are the set.
        tell_skipped: called on every rank with (sample id, reason) of what it left out of the validation set.
        metrics: further ones, by name; exact as the loss is.
        average: whose weights are measured, too, on the validation set and with the buffers of the run.
        gap_is_augmented: whether one of the sets augments by itself, which rows then say.
        best: the best value so far of each metric that has a direction.
        last: the latest row.
        last_step: the step of it; -1: there is none.
        is_owed: whether the evaluation of this step was broken off, here or before the run went on from a checkpoint.
        made_up_at: the step at which a run began with the evaluation that was owed; None: none was.
    """

    rows: RowLog
    train: Any
    validation: Any
    loss: Loss
    every: int | None
    micro_batch_size: int
    seed: int = 0
    loaders: dict[str, EvaluationLoader] = field(default_factory=dict)
    tell_skipped: Callable[[Run, list[tuple[int, str]]], None] | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    average: WeightAverage | None = None
    gap_is_augmented: bool = False
    best: dict[str, float] = field(default_factory=dict)
    last: Row = field(default_factory=dict)
    last_step: int = -1
    is_owed: bool = False
    made_up_at: int | None = None

    def on_start(self, run: Run) -> bool:
        """Evaluate what is owed; otherwise the first evaluation comes after the first interval."""
        if self.is_owed and self.measure(run) is not None:
            self.made_up_at = run.progress.step
        return self.is_owed

    def after_step(self, run: Run, report: StepReport) -> bool:
        """Evaluate, if the interval is over."""
        return report.taken.crosses(self.every) and self.measure(run) is None

    def on_end(self, run: Run, status: str) -> bool:
        """Evaluate the final weights."""
        return status == "finished" and self.last_step != run.progress.step and self.measure(run) is None

    def recall(self, runtime: Runtime, rows: Iterable[Row]) -> None:
        """Take up the best and the last of what this run had logged before it was stopped: `rows` of rank 0 count."""
        for row in rows if runtime.is_main else ():
            step, found = row.get("step"), [row[name] for name in _BETTER if name in row]
            if isinstance(step, int) and found and all(isinstance(one, (int, float)) for one in found):
                self._note({name: value for name, value in row.items() if name not in POSITION}, step)
        self.best, self.last, self.last_step = runtime.broadcast((self.best, self.last, self.last_step))

    def measure(self, run: Run) -> Row | None:
        """Evaluate both sets now and log the row; None if a rank was asked to stop meanwhile, see above."""
        started = time.perf_counter()
        skipped: dict[str, int] = {}
        with run.gradient.statistics.merged():
            of_train = self._sums(run, self.train, "train", skipped)
            of_validation = None if of_train is None else self._sums(run, self.validation, "val", skipped)
            averaged = None if of_validation is None else self._of_average(run)
        self.is_owed = averaged is None
        if of_train is None or of_validation is None or averaged is None:
            return None
        (train, train_metrics), (validation, metrics) = of_train, of_validation
        gap = generalization_gap(train, validation)
        values = {
            "eval/train_loss": train.mean_loss,
            "eval/val_loss": validation.mean_loss,
            "eval/train_accuracy": train.accuracy,
            "eval/val_accuracy": validation.accuracy,
            "eval/val_accuracy_stderr": validation.accuracy_stderr,
            "gap/loss": gap.loss,
            "gap/loss_stderr": gap.loss_stderr,
            "gap/accuracy": gap.accuracy,
            "gap/accuracy_stderr": gap.accuracy_stderr,
            **self._metric_row(train_metrics, metrics),
            **averaged,
            **skipped,
            **({AUGMENTED_GAP: 1} if self.gap_is_augmented else {}),
            "eval/seconds": time.perf_counter() - started,
        }
        # One draw does not tell its own error, and a metric may not be defined: these are left out.
        known: Row = {
            name: value
            for name, value in values.items()
            if value is not None and not (name not in _ALWAYS and math.isnan(value))
        }
        self._note(known, run.progress.step)
        self.rows.log(run.progress, self.last)
        return self.last

    def _of_average(self, run: Run) -> dict[str, float | None] | None:
        """The validation set by the averaged weights, if there are such; None if a rank broke off."""
        if self.average is None or not self.average.has_begun:
            return {}
        with self.average.in_place(run.module):
            found = self._sums(run, self.validation, "val", None)
        if found is None:
            return None
        sums, metrics = found
        return {
            "eval/ema_val_loss": sums.mean_loss,
            "eval/ema_val_accuracy": sums.accuracy,
            "eval/ema_val_accuracy_stderr": sums.accuracy_stderr,
            **{f"eval/ema_val_{name}": value for name, value in metrics.items()},
        }

    def _note(self, row: Row, step: int) -> None:
        self.last, self.last_step = row, step
        better = dict(_BETTER)
        for name, metric in self.metrics.items():
            for kind in ("val", "ema_val"):
                better[f"eval/{kind}_{name}"] = max if metric.higher_is_better else min
        for name, better_of in better.items():
            if name in row:
                value = float(row[name])
                self.best[name] = better_of(self.best.get(name, value), value)

    def _metric_row(self, train: dict[str, float], validation: dict[str, float]) -> dict[str, float]:
        """Values of both sets, and how much worse the validation set is."""
        row = dict[str, float]()
        for name, metric in self.metrics.items():
            row |= {f"eval/train_{name}": train[name], f"eval/val_{name}": validation[name]}
            better, worse = (train, validation) if metric.higher_is_better else (validation, train)
            row[f"gap/{name}"] = better[name] - worse[name]
        return row

    def _sums(
        self, run: Run, dataset: Any, name: str, skipped: dict[str, int] | None
    ) -> tuple[EvalSums, dict[str, float]] | None:
        """Sums and metrics of the set's evaluated examples, shared among ranks by contiguous slices; None: broken off.

        How many were left out is entered in `skipped`, if any were; None: it is known already.
        """
        runtime = run.runtime
        if name not in self.loaders:
            self.loaders[name] = EvaluationLoader(dataset)
        count = min(len(self.train), len(self.validation)) if name == "train" else len(dataset)
        order = SampleOrder(len(dataset), stream_key(self.seed, "evaluated subset"))
        first, sizes = _share(count, self.micro_batch_size, runtime, whole_batches=is_coupled(self.loss))
        batches = self.loaders[name].batches(order.ids(first, sum(sizes)), sizes)
        module = run.module
        broke_off, left_out, metrics = False, list[tuple[int, str]](), MetricSums(self.metrics)
        # The eleven of `EvalSums`, and how many ranks broke off and left samples out.
        table = torch.zeros(13, dtype=torch.float64, device=runtime.device)
        with evaluating(module), torch.no_grad():
            for batch in batches:
                if broke_off := run.stop_requested():
                    break
                left_out += [(int(batch.asked[place]), reason) for place, reason in batch.skipped]
                if batch.is_placeholder:
                    continue
                outputs = forward(module, runtime.place(batch.inputs))
                targets = runtime.place_tensor(batch.targets)
                table[:11] += sums_of_outputs(self.loss, outputs, targets)
                metrics.add(outputs, targets)
        table[11].fill_(broke_off)
        table[12].fill_(len(left_out))
        total = runtime.start_sum(torch.cat([table, metrics.vector(runtime)])).result()
        num_broken_off, all_skipped = total[11:13]
        if name == "val" and skipped is not None and self.tell_skipped is not None:
            self.tell_skipped(run, left_out)
        if all_skipped and skipped is not None:
            skipped[f"eval/{name}_skipped"] = round(all_skipped)
        if num_broken_off:
            return None
        sums = torch.tensor(total, dtype=torch.float64)
        return EvalSums.from_tensor(sums[:11]), metrics.values(sums[13:])


def _share(count: int, micro_batch_size: int, runtime: Runtime, *, whole_batches: bool) -> tuple[int, list[int]]:
    """This rank's first place among `count` samples, and the sizes of its batches from there on.

    With `whole_batches` the cut into batches depends on `count` alone, and a rank takes some of them, maybe none.
    """
    if whole_batches:
        cut = BatchPlan.solve(global_batch_size=count, world_size=1, max_micro_batch_size=micro_batch_size)
        sizes = list(cut.micro_batch_sizes)
        first, last = (len(sizes) * rank // runtime.world_size for rank in (runtime.rank, runtime.rank + 1))
        return sum(sizes[:first]), sizes[first:last]
    first, last = (count * rank // runtime.world_size for rank in (runtime.rank, runtime.rank + 1))
    full, rest = divmod(last - first, micro_batch_size)
    return first, [micro_batch_size] * full + [rest] * (rest > 0)
