"""The metrics of a run that are drawn, and their figures: the one table for PNG, page and W&B."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from largebatch.records.figures.diagram import Axis, Style
from largebatch.records.rows.augmented_gap import AUGMENTED_GAP


@dataclass(frozen=True)
class Metric:
    """A metric of the rows as a line.

    Attributes:
        key: its name in the rows.
        label: in the legend of its figure.
        title: of the figure that compares several runs in it; empty: there is none.
        noisy: whether raw values are drawn faintly under their smoothed course.
        low, high: keys of the ends of its 95 % interval; empty: it has none.
        stderr: key of its standard error, whose 95 % are drawn; the last one is in the legend.
        style: of the line.
        meaning: goes before the caption of a figure that draws it.
    """

    key: str
    label: str
    title: str = ""
    noisy: bool = False
    low: str = ""
    high: str = ""
    stderr: str = ""
    style: Style = "both"
    meaning: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """All that it needs of the rows."""
        return tuple(key for key in (self.key, self.low, self.high, self.stderr) if key)


@dataclass(frozen=True)
class RunFigure:
    """A figure over the samples seen.

    Attributes:
        picture: name of the PNG that it is a panel of.
        name: its own.
        title: names the content.
        y: the axis.
        metrics: its lines.
        others: keys of the rows of which lines are computed.
        caption: how to read it.
        log_if_wide: whether the axis is logarithmic where values span a factor of 50.
    """

    picture: str
    name: str
    title: str
    y: Axis
    metrics: tuple[Metric, ...] = ()
    others: tuple[str, ...] = ()
    caption: str = ""
    log_if_wide: bool = False


TRAINING, TIME, NOISE, COMMUNICATION, SHARPNESS = "training", "time", "noise_scale", "communication", "sharpness"
NOISE_SCALE = Metric(
    "noise_scale/b_simple",
    "gradient noise scale",
    "Gradient noise scale",
    low="noise_scale/ci_low",
    high="noise_scale/ci_high",
    meaning="tr(Σ) / |G|²: the batch size at which noise and signal of the gradient are equal.",
)
OPTIMIZER_NOISE_SCALE = Metric(
    "noise_scale/optimizer/b_simple",
    "in the optimizer's geometry",
    "Noise scale in the optimizer's geometry",
    low="noise_scale/optimizer/ci_low",
    high="noise_scale/optimizer/ci_high",
    meaning="In the optimizer's geometry: tr(PΣ) / G'PG, with its preconditioner P.",
)
BATCH = "train/global_batch_size"
# The parts of a step's time; the rest of it is "other".
TIME_PARTS = {"time/data_s": "data", "time/compute_s": "compute", "time/communication_s": "communication"}

FIGURES = (
    RunFigure(
        TRAINING, "loss", "Loss", Axis("loss", "mean per sample or token"),
        (
            Metric("train/loss", "training batches", "Training loss", noisy=True),
            Metric("eval/train_loss", "training set"),
            Metric("eval/val_loss", "validation set", "Validation loss"),
        ),
        log_if_wide=True,
    ),
    RunFigure(
        TRAINING, "accuracy", "Accuracy", Axis("accuracy", "fraction correct"),
        (
            Metric("eval/train_accuracy", "training set"),
            Metric("eval/val_accuracy", "validation set", "Validation accuracy"),
        ),
    ),
    RunFigure(
        TRAINING, "generalization_gap", "Generalization gap", Axis("gap", "validation worse than training"),
        (
            Metric("gap/loss", "loss", "Generalization gap of the loss", stderr="gap/loss_stderr"),
            Metric("gap/accuracy", "accuracy (fraction)", "Generalization gap of the accuracy",
                   stderr="gap/accuracy_stderr"),
        ),
    ),
    RunFigure(
        TRAINING, "learning_rate", "Learning rate", Axis("learning rate", low=0),
        (Metric("train/lr", "learning rate", "Learning rate"),),
    ),
    RunFigure(TRAINING, "global_batch", "Global batch", Axis("global batch", "samples", low=0), others=(BATCH,)),
    RunFigure(
        TRAINING, "grad_norm", "Gradient norm", Axis("gradient norm", "L2"),
        (Metric("train/grad_norm", "gradient norm", "Gradient norm", noisy=True),),
        log_if_wide=True,
    ),
    RunFigure(
        TRAINING, "trust_ratios", "Trust ratios over layers", Axis("trust ratio"),
        (
            Metric("trust_ratio/max", "largest"),
            Metric("trust_ratio/q75", "75 %"),
            Metric("trust_ratio/median", "median"),
            Metric("trust_ratio/q25", "25 %"),
            Metric("trust_ratio/min", "smallest"),
        ),
        log_if_wide=True,
    ),
    RunFigure(
        TIME, "step_time", "Time of a step", Axis("time per step", "s", low=0), others=("time/step_s", *TIME_PARTS),
        caption="Means over at most 100 stretches.",
    ),
    RunFigure(
        TIME, "throughput", "Throughput", Axis("throughput", "samples / s", low=0),
        (Metric("train/samples_per_s", "throughput", "Throughput", noisy=True),),
    ),
    RunFigure(
        NOISE, "noise_scale", "Gradient noise scale", Axis("gradient noise scale", "samples", log=True),
        (NOISE_SCALE, OPTIMIZER_NOISE_SCALE), (BATCH,),
        "Left out where there is not enough evidence. An order of magnitude, not a recipe.",
    ),
    RunFigure(
        COMMUNICATION, "communication", "Communication of the gradient", Axis("time per step", "s", low=0),
        (
            Metric("communication/predicted_s", "predicted from latency and bandwidth", style="dashed"),
            Metric("communication/straggler_wait_s", "wait of the fastest rank for the slowest"),
        ),
        ("communication/total_s", "communication/exposed_s"),
        "Exposed: after the last gradient of the slowest rank. Hidden: beside computation.",
    ),
    RunFigure(
        COMMUNICATION, "exposed_communication", "Exposed communication",
        Axis("exposed communication", "share of the step's time", low=0),
        (Metric("communication/share_of_step", "exposed", "Exposed communication"),),
    ),
    RunFigure(
        SHARPNESS, "lambda_max", "Largest Hessian eigenvalue", Axis("largest Hessian eigenvalue", low=0),
        (Metric("sharpness/lambda_max", "largest Hessian eigenvalue", "Largest Hessian eigenvalue"),), ("train/lr",),
        "On a fixed training subset.",
    ),
    RunFigure(
        SHARPNESS, "trace", "Trace of the Hessian", Axis("trace of the Hessian"),
        (Metric("sharpness/trace", "trace", "Trace of the Hessian", stderr="sharpness/trace_stderr"),),
    ),
    RunFigure(
        SHARPNESS, "m_sharpness", "m-sharpness", Axis("m-sharpness", "rise of the loss"),
        (Metric("sharpness/m_sharpness", "m-sharpness", "m-sharpness", stderr="sharpness/m_sharpness_stderr"),),
    ),
)  # fmt: skip


def compared_metrics() -> Iterator[tuple[RunFigure, Metric, Axis]]:
    """The metrics that have a figure of several runs, with the figure they are of and the axis of their own one."""
    for figure in FIGURES:
        for metric in figure.metrics:
            if metric.title:
                yield figure, metric, replace(figure.y, label=metric.title[:1].lower() + metric.title[1:])


# Everything that the figures need of the rows; groups of parameters with a noise scale of their own besides.
KEYS = frozenset(
    {"epoch", AUGMENTED_GAP}
    | {key for one in FIGURES for key in (*one.others, *(k for metric in one.metrics for k in metric.keys))}
)


def is_drawn(name: str) -> bool:
    """Whether a figure of a run may show it: a user's own metrics, perhaps thousands, are not kept."""
    return name in KEYS or group_of(name) is not None


def group_of(name: str) -> str | None:
    """The group of parameters whose noise scale a key is; None for other keys.

    >>> [group_of(f"noise_scale/{key}") for key in ("head/b_simple", "b_simple", "optimizer/b_simple")]
    ['head', None, None]
    """
    if name == OPTIMIZER_NOISE_SCALE.key:
        return None
    parts = name.split("/")
    return parts[1] if len(parts) == 3 and f"{parts[0]}/{parts[2]}" == NOISE_SCALE.key else None
