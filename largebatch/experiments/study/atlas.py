"""The atlas: critical batch sizes of published systems, by the same fit and verdict as those of a study.

`published_steps.csv` holds, for each system and batch size, the median over runs of the steps to the system's quality
target, and how many runs that is. They are medians of MLCommons' reference convergence points, which experts tuned for
each batch size: https://github.com/mlcommons/logging, `rcp_checker`, snapshot 7bbf792 of 2026-07-29, Apache-2.0. Steps
are epochs, or samples, to the target times the size of the set over the batch; those of DeepCAM and CosmoFlow are on a
scale of their own, on which B_crit does not depend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from largebatch.diagnostics.critical_batch.critical_batch import CriticalBatch
from largebatch.experiments.study.analysis import Analysis, analyse, estimate_text
from largebatch.experiments.study.csv_table import ONLY_ONE, TableError, read_points
from largebatch.experiments.study.points import StudyPoint
from largebatch.experiments.study.record import curve_sizes, study_record
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table

# System -> round of the benchmark, and the unit of a sample.
PUBLISHED = {
    "ResNet-50 with LARS": ("training 4.0", "images"),
    "BERT-large with LAMB": ("training 5.1", "sequences"),
    "GPT-3 175B": ("training 4.0", "sequences"),
    "Llama 3.1 405B": ("training 5.0", "sequences"),
    "R-GAT": ("training 5.1", "nodes"),
    "DLRM-DCNv2": ("training 6.0", "clicks"),
    "Stable Diffusion": ("training 5.0", "images"),
    "DeepCAM": ("HPC 3.0", "images"),
    "CosmoFlow": ("HPC 3.0", "volumes"),
}
SOURCE = "MLCommons, github.com/mlcommons/logging, reference convergence points, snapshot 7bbf792, Apache-2.0"
HEADERS = ("system", "from", "batch sizes", "runs of each", "B_crit", "error at a left-out batch", "verdict")


def read_atlas(own: Sequence[Path] = ()) -> Analysis:
    """Fits of all published systems, and beside them of one's own tables, each named by its file.

    Raises:
        TableError: with the faults of a table.
        OSError: if one cannot be read.
    """
    with as_file(files("largebatch.experiments.study") / "published_steps.csv") as path:
        points = read_points(path)
    for number, file in enumerate(own):
        if file.stem in (*PUBLISHED, *(other.stem for other in own[:number])):
            raise TableError(f"{file}: another system of the atlas has the name {file.stem}, too. Rename the file.")
        points += [_named(point, file.stem) for point in read_points(file)]
    return analyse(points)


def atlas_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """A row of cells under `HEADERS` for each system."""
    return [_row(name, fit) for name, fit in analysis.fits.items()]


def atlas_result(analysis: Analysis) -> Result:
    """The atlas as question, sentences, table and figures."""
    fitted = {name: fit for name, fit in analysis.fits.items() if not fit.verdict.startswith("not")}
    return Result(
        title="The critical batch of published systems",
        question="At which batch size do published systems begin to waste samples, and how sure is that?",
        sentences=_sentences(analysis),
        tables=(Table(f"S = S_min (1 + B_crit/B), by medians over runs. {SOURCE}", HEADERS, atlas_rows(analysis)),),
        figures=(_collapsed(fitted), _samples(fitted), _errors(fitted)) if fitted else (),
        numbers=study_record(analysis),
        picture="atlas.png",
    )


def _named(point: StudyPoint, name: str) -> StudyPoint:
    whole = name if point.optimizer == ONLY_ONE else f"{name}, {point.optimizer}"
    return StudyPoint(whole, point.measured, point.by_seed)


def _row(name: str, fit: CriticalBatch) -> tuple[str, ...]:
    sizes = [point.batch_size for point in fit.points]
    runs = [point.num_replicates for point in fit.points]
    source, unit = PUBLISHED.get(name, ("your own", "samples"))
    known = fit.b_crit is not None and fit.misfit is not None
    return (
        name,
        source,
        f"{len(sizes)}: {min(sizes):,} to {max(sizes):,} {unit}" if len(sizes) > 1 else f"1: {sizes[0]:,} {unit}",
        f"{min(runs)} to {max(runs)}" if min(runs) < max(runs) else f"{runs[0]}",
        estimate_text(fit.b_crit) if fit.b_crit else "",
        f"{fit.misfit.left_out_error:.0%}, at worst {fit.misfit.worst_left_out:.0%}" if known and fit.misfit else "",
        fit.verdict.partition(":")[0],
    )


def _sentences(analysis: Analysis) -> list[str]:
    by_word: dict[str, list[str]] = {}
    for name, fit in analysis.fits.items():
        by_word.setdefault(fit.verdict.partition(":")[0], []).append(name)
    supported = {name: analysis.fits[name].b_crit for name in by_word.get("supported", [])}
    values = sorted(estimate.value for estimate in supported.values() if estimate)
    sentences = []
    if values:
        sentences.append(
            f"{len(values)} of {len(analysis.fits)} systems support a critical batch. It lies between {values[0]:,.0f} "
            f"and {values[-1]:,.0f} samples."
        )
    if extrapolated := by_word.get("extrapolated"):
        sentences.append(f"It is extrapolated beyond the measured batch sizes for {', '.join(extrapolated)}.")
    sentences += [f"{name} is {analysis.fits[name].verdict}." for name in by_word.get("not supported", [])]
    sentences.append(
        "Do not compare two rows: a sample is an image in one, and a sequence, a node or a click in another."
    )
    return sentences


def _collapsed(told: dict[str, CriticalBatch]) -> Diagram:
    """All systems on one curve, if the hyperbola is the law."""
    lines = []
    for name, fit in told.items():
        assert fit.b_crit is not None
        assert fit.s_min is not None
        x = [point.batch_size / fit.b_crit.value for point in fit.points]
        y = [point.median[0] / fit.s_min.value for point in fit.points]
        lines.append(Line(name, x, y, style="points"))
    return Diagram(
        "one_curve", "Every system on one curve", Axis("batch size / B_crit", log=True),
        Axis("steps / S_min", log=True), (*lines, _theory(told)),
        "Points: medians over runs, scaled by the two fitted numbers of their system. Systems without a supported "
        "B_crit are left out.",
    )  # fmt: skip


def _theory(told: dict[str, CriticalBatch]) -> Line:
    ratios = [
        point.batch_size / fit.b_crit.value for fit in told.values() for point in fit.points if fit.b_crit is not None
    ]
    least, most = math.log(min(ratios)), math.log(max(ratios))
    x = [math.exp(least + (most - least) * number / 40) for number in range(41)]
    return Line("1 + B_crit/B", x, [1 + 1 / one for one in x], style="dashed")


def _samples(told: dict[str, CriticalBatch]) -> Diagram:
    lines = []
    for name, fit in told.items():
        assert fit.b_crit is not None
        sizes = curve_sizes(fit)
        # The larger B_crit, the fewer samples a batch wastes: the ends change places.
        value, low, high = (
            [1 + size / end for size in sizes] for end in (fit.b_crit.value, fit.b_crit.high, fit.b_crit.low)
        )
        lines.append(Line(name, sizes, value, low, high))
    return Diagram(
        "samples_wasted", "Samples to the target over the fewest", Axis("batch size", "samples", log=True),
        Axis("samples / E_min", log=True), tuple(lines),
        "E = E_min (1 + B/B_crit), over the batch sizes that were measured. Bands: from the 95 % interval of B_crit.",
    )  # fmt: skip


def _errors(told: dict[str, CriticalBatch]) -> Diagram:
    lines = []
    for name, fit in told.items():
        assert fit.b_crit is not None
        assert fit.misfit is not None
        x = [size / fit.b_crit.value for size in fit.misfit.batch_sizes]
        lines.append(Line(name, x, [100 * math.expm1(error) for error in fit.misfit.left_out], style="both"))
    return Diagram(
        "prediction_errors", "Each batch size against the fit to the others", Axis("batch size / B_crit", log=True),
        Axis("error of the prediction", "%"), tuple(lines), "Above 0: more steps than predicted.",
    )  # fmt: skip
