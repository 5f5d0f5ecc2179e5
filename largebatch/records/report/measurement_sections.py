"""Sections of what `largebatch measure` and `largebatch compare` have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from largebatch.records.figures.diagram import Axis, Diagram, Line, Surface
from largebatch.records.figures.figure import Figure
from largebatch.records.report.evidence import JsonRecord
from largebatch.records.report.html_parts import link_to, links, paragraph, table
from largebatch.records.report.sections import Option
from largebatch.records.rows.series import of_gap

_BATCH = Axis("batch size", "samples", log=True)


def variance(record: JsonRecord, page: Path) -> Option:
    """The 1/B law: measured variances beside theory, with and without replacement."""
    lines: list[Line] = []
    said = []
    for key, drawn in (("with_replacement", "with replacement"), ("without_replacement", "without")):
        curve = record.values[key]
        points = [point for point in curve["points"] if point.get("interval")]
        if not points:
            continue
        sizes = [point["batch_size"] for point in points]
        low, high = ([point["interval"][side] for point in points] for side in (0, 1))
        lines.append(Line(f"measured, {drawn}", sizes, [point["variance"] for point in points], low, high, "points"))
        known = [point for point in points if point["theory"] > 0]
        theory = [point["theory"] for point in known]
        lines.append(Line(f"theory, {drawn}", [point["batch_size"] for point in known], theory, style="dashed"))
        if slope := curve.get("slope"):
            start, end = slope["interval"]
            said.append(f"slope {drawn} {slope['value']:.3f} (95 %: {start:.3f} to {end:.3f}; the law has -1)")
    caption = "Independent draws follow tr(Σ)/B; without replacement the noise ends with the set. Bars: 95 %."
    y = Axis("gradient variance", "squared norm", log=True)
    figure = Diagram("variance_law", "Gradient variance against batch size", _BATCH, y, tuple(lines), caption)
    return Option(record.name, [figure], paragraph(f"{'; '.join(said)}.") + _source(record, page))


def gap(record: JsonRecord, page: Path) -> Option:
    """What lies between printed training loss and validation loss."""
    values = record.values
    rows = [("training, as printed", f"{values['train_loss']:.5g}", "")]
    rows += [(part["name"], *_shown(part["loss"])) for part in values["parts"]]
    rows += [("validation", f"{values['val_loss']:.5g}", "")]
    rows += [("naive gap", *_shown(values["naive"]["loss"]))]
    remark = of_gap(values.get("is_augmented"))
    rows += [(f"generalization gap{remark}", *_shown(values["generalization_gap"]["loss"]))]
    return Option(record.name, [], table(("part", "loss", "95 %"), rows) + _source(record, page))


def communication(record: JsonRecord, page: Path) -> Option:
    """Steps with and without their all-reduces, and how long an all-reduce of some size takes."""
    medians, probe, fit = (record.values[key] for key in ("medians", "all_reduces", "fit"))
    rows = [(name.replace("_", " "), *_median(name, one)) for name, one in medians.items()]
    sizes = probe["num_bytes"]
    lines = [Line("measured", sizes, probe["median_s"], probe["low_s"], probe["high_s"], "points")]
    if fit.get("s_per_byte"):
        fitted = [fit["latency_s"] + size * fit["s_per_byte"] for size in sizes]
        lines.append(Line("fit to undisturbed ones", sizes, fitted, style="dashed"))
    figure = Diagram(
        "all_reduce",
        "Time of an all-reduce",
        Axis("size", "bytes", log=True),
        Axis("time", "s", log=True),
        tuple(lines),
    )
    return Option(record.name, [figure], table(("what", "median", "95 %"), rows) + _source(record, page))


def sharpness(record: JsonRecord, page: Path) -> Option:
    """Curvature and the slices through the loss."""
    values = record.values
    top, trace, m = values["lambda_max"], values.get("trace"), values.get("m_sharpness")
    rows = [("largest Hessian eigenvalue", f"{top['value']:.4g}", f"residual {top['residual']:.1g}")]
    for name, one in (("trace of the Hessian", trace), ("m-sharpness", m)):
        if one:
            error = one.get("standard_error")
            rows.append((name, f"{one['value']:.4g}", "" if error is None else f"± {error:.2g}"))
    return Option(record.name, _slices(values), table(("what", "value", "error"), rows) + _source(record, page))


def _slices(values: dict[str, Any]) -> list[Figure]:
    slices = values.get("slices") or {}
    loss = Axis("loss", f"mean per {values.get('unit', 'sample')}")
    figures: list[Figure] = []
    along = Axis("distance along a random direction", "filter norms")
    if slices.get("line"):
        line = (Line("loss", slices["line_positions"], slices["line"]),)
        figures.append(Diagram("slice_1d", "Loss along a direction", along, loss, line))
    if slices.get("plane"):
        places = slices["plane_positions"]
        across = Axis("distance along another", "filter norms")
        plane = Surface(
            "slice_2d", "Loss over a plane", along, across, loss, places, places, slices["plane"], contours=True
        )
        figures.append(plane)
    return figures


def comparison(record: JsonRecord, page: Path) -> Option:
    """Large-batch gaps at matched points."""
    rows = [
        (
            f"{one['global_batch_size']:,}",
            str(one["match"]).replace("_", " "),
            "none" if one["at"] is None else f"{one['at']:,.4g}",
            *(_shown(one["loss"]) if one["loss"] else (str(one.get("reason", "")), "")),
            *(_shown(one["accuracy"]) if one.get("accuracy") else ("", "")),
        )
        for one in record.values["large_batch_gap"]
    ]
    headers = ("batch", "matched by", "at", "loss gap", "95 %", "accuracy gap", "95 %")
    base = record.values.get("base_batch_size")
    caption = f"against batch {base}; positive is worse"
    return Option(record.name, [], table(headers, rows, caption=caption) + _source(record, page))


def _source(record: JsonRecord, page: Path) -> str:
    weights = record.values.get("weights")
    of = paragraph(f"Of {weights}, on {record.values.get('world_size', 1)} processes.") if weights else ""
    return f'{of}<p class="soft">All numbers: {links([link_to(page, record.path, record.path.name)])}</p>'


def _shown(one: dict[str, Any] | None) -> tuple[str, str]:
    if one is None:
        return "none", ""
    ends = [one.get("low"), one.get("high")]
    interval = "no interval" if None in ends else f"{ends[0]:+.4g} to {ends[1]:+.4g}"
    return f"{one['value']:+.4g}", interval


def _median(name: str, one: dict[str, float]) -> tuple[str, str]:
    factor, unit = (100, "%") if name.endswith("share") else (1000, "ms")
    value, low, high = (factor * one[key] for key in ("value", "low", "high"))
    return f"{value:.4g} {unit}", f"{low:.4g} to {high:.4g}"
