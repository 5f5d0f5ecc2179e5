"""A batch from accumulated micro-batches against the same batch at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from largebatch.diagnostics.settings import PositiveInt, Section
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.weight_path import Float64Array, WeightPath
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table
from largebatch.run.config.reading import ConfigError

_EPS = {"fp64": float(np.finfo(np.float64).eps), "fp32": float(np.finfo(np.float32).eps)}


class Settings(Section):
    """See conf/experiment/textbook/accumulation.yaml."""

    micro: PositiveInt
    ragged: PositiveInt
    world_size: PositiveInt
    precisions: Annotated[list[Literal["fp64", "fp32"]], Field(min_length=1)]
    plain: list[str]
    normed: list[str]


@dataclass(frozen=True)
class Comparison:
    """Weights after a split batch against weights after the batch at once.

    Attributes:
        model: plain or batch norm.
        precision: of both runs.
        split: how the batch is cut.
        distance: largest |difference| of a weight after every step, the start included, [steps + 1].
        equal: share of weights that are equal bit for bit after the first step.
        size: largest |weight| after the first step.
    """

    model: str
    precision: str
    split: str
    distance: Float64Array
    equal: float
    size: float

    @property
    def in_eps(self) -> float:
        """Distance after the first step in units of eps x largest weight: of the order of 1 for rounding alone."""
        return float(self.distance[1]) / (_EPS[self.precision] * self.size)


def run(experiment: Experiment, settings: Settings) -> Result:
    """The same steps with every split of the batch."""
    total = experiment.config.batch.total
    if not isinstance(total, int) or total % settings.micro or settings.micro == total:
        raise ConfigError(
            [f"textbook.micro={settings.micro}: batch.total={total} is no multiple of it. Use a proper divisor."]
        )
    found = [one for precision in settings.precisions for one in _plain(experiment, settings, total, precision)]
    if settings.world_size > 1:
        found += _on_ranks(experiment, settings, total)
    found += _normed(experiment, settings, total)
    return Result(
        title="Gradient accumulation",
        question=f"Are {total} samples from micro-batches of {settings.micro} the same as {total} at once?",
        sentences=_sentences(found, total, settings),
        tables=(_table(found),),
        figures=(_diagram(found, total),),
        numbers={"comparisons": [_numbers(one) for one in found]},
    )


def _plain(experiment: Experiment, settings: Settings, total: int, precision: str) -> list[Comparison]:
    """A model in which no sample sees another, split in several ways."""
    count = total // settings.micro
    split = f"{count} x {settings.micro}"
    ways = {
        split: (f"batch.micro={settings.micro}",),
        f"{split}, ordered sum": (f"batch.micro={settings.micro}", "batch.reduction=ordered"),
        f"unequal, {settings.ragged} at most": (f"batch.max_micro={settings.ragged}",),
    }
    common = (*settings.plain, f"precision={precision}")
    whole = _weights(experiment, f"{precision}-at-once", *common, f"batch.micro={total}")
    found, paths = [], {}
    for name, overrides in ways.items():
        paths[name] = _weights(experiment, f"{precision}-{_file_name(name)}", *common, *overrides)
        found.append(_compared("plain", precision, f"{name} / at once", paths[name], whole))
    again = _weights(experiment, f"{precision}-again", *common, *ways[split])
    found.append(_compared("plain", precision, f"{split} / itself again", again, paths[split]))
    return found


def _on_ranks(experiment: Experiment, settings: Settings, total: int) -> list[Comparison]:
    """The micro-batches shared among processes, against all of them on one."""
    precision, found = settings.precisions[-1], []
    common = (*settings.plain, f"precision={precision}", f"batch.micro={settings.micro}")
    split = f"{total // settings.micro} x {settings.micro}"
    for name, reduction in ((split, "all_reduce"), (f"{split}, ordered sum", "ordered")):
        overrides = (*common, f"batch.reduction={reduction}")
        one = _weights(experiment, f"{reduction}-on-1-rank", *overrides)
        several = experiment.train_on_ranks(
            f"{reduction}-on-{settings.world_size}-ranks", settings.world_size, *overrides
        )
        found.append(_compared("plain", precision, f"{name}: {settings.world_size} ranks / 1 rank", several, one))
    return found


def _normed(experiment: Experiment, settings: Settings, total: int) -> list[Comparison]:
    """A model with batch norm, in which samples see their micro-batch, or the whole batch."""
    common = (*settings.normed, "precision=fp64")
    whole = _weights(experiment, "batch-norm-at-once", *common, f"batch.micro={total}")
    found = []
    for kind, name in (("per_micro_batch", "statistics of each"), ("exact", "statistics of all")):
        micro = (f"batch.micro={settings.micro}", f"batch_norm={kind}")
        path = _weights(experiment, f"batch-norm-{kind}", *common, *micro)
        split = f"{total // settings.micro} x {settings.micro}, {name} / at once"
        found.append(_compared("batch norm", "fp64", split, path, whole))
    return found


def _weights(experiment: Experiment, name: str, *overrides: str) -> Float64Array:
    path = WeightPath()
    experiment.train(name, *overrides, observers=[path])
    return path.weights


def _compared(model: str, precision: str, split: str, one: Float64Array, other: Float64Array) -> Comparison:
    assert (one[0] == other[0]).all(), "both start from the same weights"
    return Comparison(
        model=model,
        precision=precision,
        split=split,
        distance=np.abs(one - other).max(axis=1),
        equal=float((one[1] == other[1]).mean()),
        size=float(np.abs(other[1]).max()),
    )


def _diagram(found: list[Comparison], total: int) -> Diagram:
    lines = []
    for one in found:
        if one.distance.any():
            steps = np.flatnonzero(one.distance)  # 0 has no place on a logarithmic axis
            label = f"{one.model}, {one.precision}: {one.split}"
            lines.append(Line(label, steps.tolist(), one.distance[steps].tolist()))
    return Diagram(
        "distance_over_steps",
        f"Weights of a split batch of {total} against the batch at once",
        Axis("steps"),
        Axis("largest difference of a weight", log=True),
        tuple(lines),
        "Splits that give equal bits have no line.",
    )


def _table(found: list[Comparison]) -> Table:
    rows = [
        (
            one.model, one.precision, one.split, f"{one.distance[1]:.2g}", f"{one.in_eps:.2g}", f"{one.equal:.1%}",
            f"{one.distance[-1]:.2g}",
        )
        for one in found
    ]  # fmt: skip
    headers = ("model", "precision", "what / against", "step 1", "in eps", "equal bits", "last step")
    return Table("largest difference of a weight; eps: of the precision, times the largest weight", headers, rows)


def _sentences(found: list[Comparison], total: int, settings: Settings) -> list[str]:
    split = f"{total // settings.micro} x {settings.micro}"
    is_rounding = all(one.in_eps < 100 for one in found if one.model == "plain")
    sentences = [
        f"Yes, up to rounding: {split} adds the same numbers as {total} at once, in another order."
        if is_rounding
        else f"No: {split} and {total} at once differ by more than rounding."
    ]
    for precision in settings.precisions:
        one = next(one for one in found if (one.precision, one.split) == (precision, f"{split} / at once"))
        sentences.append(
            f"In {precision} the largest difference after one step is {one.distance[1]:.1g}, {one.in_eps:.1g} eps of "
            f"the largest weight; {one.equal:.0%} of the weights are bitwise equal."
        )
    again = [one for one in found if one.split.endswith("itself again")]
    same = "bitwise equal weights" if not any(one.distance.any() for one in again) else (
        "unequal bits, which no order of sums explains"
    )  # fmt: skip
    sentences.append(f"The same split, run again, gives {same}.")
    sentences += _about_ranks(found)
    ghost, exact = (one for one in found if one.model == "batch norm")
    return [
        *sentences,
        f"Batch norm over each micro-batch is another model: its weights differ by {ghost.distance[1]:.1g} after one "
        "step.",
        f"Batch norm over the whole batch (batch_norm=exact) differs by {exact.distance[1]:.1g}.",
    ]


def _about_ranks(found: list[Comparison]) -> list[str]:
    shared = [one for one in found if one.split.endswith("/ 1 rank")]
    if not shared:
        return []
    plain, ordered = shared
    same = "gives bitwise equal weights" if not ordered.distance.any() else f"differs by {ordered.distance[-1]:.1g}"
    return [
        f"On several ranks the all-reduce adds in another order: weights differ by {plain.distance[-1]:.1g} at the "
        "end.",
        f"The ordered sum (batch.reduction=ordered) {same}.",
    ]


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _numbers(one: Comparison) -> dict[str, Any]:
    return {
        "model": one.model,
        "precision": one.precision,
        "what": one.split,
        "distance": one.distance,
        "first_step_in_eps": one.in_eps,
        "share_of_equal_bits": one.equal,
    }
