"""The advice as a whole: chart, table, sentences and picture, for the console, for JSON and for a report."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from largebatch.diagnostics.predictions.grades import Calibration
from largebatch.experiments.advice.assessment import Assessment, assess
from largebatch.experiments.advice.decision import NO, YES, Branch, branches
from largebatch.experiments.advice.picture import picture
from largebatch.experiments.advice.planned import Planned
from largebatch.experiments.advice.questions import END
from largebatch.experiments.advice.sentences import recommended, sentences
from largebatch.records.graded_runs import calibration_lines, calibration_of, calibration_table
from largebatch.records.report.estimates import MOST_SPREAD, NONE, TOO_WIDE, Estimate
from largebatch.records.report.evidence import Evidence
from largebatch.records.report.explorer import interval_text, value_text
from largebatch.records.result import Result, Table

TITLE = "How large should the batch be?"
WIDTH = 80
# Rows of the table: key of a quantity -> its name.
ROWS = {
    "iterations": "steps / epoch",
    "relative_noise": "B_noise / B",
    "memory": "peak memory",
    "step_time": "step time",
    "exposed_communication": "exposed comm.",
    "epoch_time": "epoch time",
    "price": "epoch price",
    "energy": "epoch energy",
    "steps": "steps to target",
    "samples": "samples to target",
    "time_to_target": "time to target",
}
_OVER_FEWEST = {"steps": "steps / fewest", "samples": "samples / fewest", "time_to_target": "time / fewest steps"}
_GAPS = ("gap_accuracy", "gap_loss")
_MARK = {"interpolated": "~", "extrapolated": "*", "predicted": "+"}
_LEGEND = (
    "measured or exact; ~ interpolated; * extrapolated; + predicted; below: 95 %, or the range of runs; not known: its "
    f"ends are more than a factor of {MOST_SPREAD:.0f} apart, as too few runs, or too unequal ones, tell it"
)
_NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Advice:
    """The answer.

    Attributes:
        found: what it rests on.
        chart: the flow chart.
        sentences: three.
    """

    found: Assessment
    chart: list[Branch]
    sentences: list[str]

    @property
    def calibration(self) -> list[Calibration]:
        """How the predictions did that the runs made of themselves: no plan without its error."""
        return calibration_of(run.summary for run in self.found.group.runs)

    def tree(self) -> list[str]:
        """The chart as an indented tree of lines of at most 80 letters; commands stay whole."""
        lines, depth = [], 0
        for one in self.chart:
            lines += _wrapped(one.text, depth, "")
            lines += _finding_lines(one, depth)
            depth += one.finding.taken == YES
        return [*lines, *_wrapped(END.replace("`", ""), depth, "")] if depth == len(self.chart) else lines

    def table(self) -> Table:
        """Two lines per cell: a value with its mark, and the interval."""
        sizes = self.found.sizes
        known = [(key, name) for key, name in self._rows() if self._has_evidence(key)]
        rows = [[name, *(_cell(self.found, key, size) for size in sizes)] for key, name in known]
        return Table("candidates", ["batch", *(f"{size:,}" for size in sizes)], rows)

    def sources(self) -> list[str]:
        """A line for each row of the table, and for each that it does not have."""
        lines = []
        for key, name in self._rows():
            quantity = self.found.quantities.get(key)
            source = "no run and no measurement of this task tells it" if quantity is None else quantity.source
            lines.append(f"{name}: {'' if self._has_evidence(key) else 'no evidence: '}{source}")
        return lines

    def _has_evidence(self, key: str) -> bool:
        return any(self.found.at(key, size).kind != NONE for size in self.found.sizes)

    def _rows(self) -> list[tuple[str, str]]:
        gap = next((key for key in _GAPS if key in self.found.quantities), _GAPS[-1])
        rows = (
            ROWS if "energy" in self.found.quantities else {key: name for key, name in ROWS.items() if key != "energy"}
        )
        if self.found.quantities["steps"].unit == "ratio":
            rows = rows | _OVER_FEWEST
        return [*rows.items(), (gap, "accuracy gap" if gap == _GAPS[0] else "loss gap")]

    def record(self) -> dict[str, Any]:
        """Plain values, for `plan.format=json` and advice.json."""
        found, choice = self.found, recommended(self.found)
        return {
            "sentences": self.sentences,
            "recommended": None if choice is None else asdict(choice),
            "critical_batch": [
                {"value": one.amount.value, "low": one.amount.low or None, "high": one.amount.high, "kind": one.kind,
                 "source": one.source, "bound": one.bound or None}
                for one in found.critical
            ],
            "chart": [one.record() for one in self.chart],
            "candidates": [
                {"batch": size, "quantities": {key: _plain(found.at(key, size)) for key, _ in self._rows()}}
                for size in found.sizes
            ],
            "units": {key: one.unit for key, one in found.quantities.items()},
            "sources": {key: found.quantities[key].source for key, _ in self._rows() if key in found.quantities},
            "calibration": [asdict(one) for one in self.calibration],
            "runs": [str(run.folder) for run in found.group.runs],
            "left_out": [{"path": str(one.path), "reason": one.reason} for one in found.evidence.left_out],
            "damaged": [{"path": str(one.path), "reason": one.reason} for one in found.evidence.damaged],
        }  # fmt: skip

    def result(self) -> Result:
        """As every verb writes one."""
        chart = Table(
            "The flow chart, measured",
            ("question", "answer", "measured", "source", "otherwise, or what would measure it"),
            [
                (one.text, one.finding.taken, one.finding.measured, one.finding.source, one.then or one.command)
                for one in self.chart
            ],
        )
        task = f"{self.found.planned.task}, {self.found.planned.optimizer}"
        cells, graded = self.table(), self.calibration
        return Result(
            title=TITLE,
            sentences=self.sentences,
            tables=(
                Table(f"{task}: {_LEGEND}", cells.headers, cells.rows),
                chart,
                *([calibration_table(graded)] if graded else []),
            ),
            figures=picture(self.found),
            numbers=self.record(),
            picture="advice.png",
            heading=f"{TITLE} {task}",
        )

    def text(self) -> Iterator[str]:
        """The lines behind the table: sources, and the answer."""
        yield from textwrap.wrap(_LEGEND, WIDTH)
        for line in [*self.sources(), *calibration_lines(self.calibration)]:
            yield from textwrap.wrap(line, WIDTH, subsequent_indent="  ")
        yield ""
        for number, sentence in enumerate(self.sentences, 1):
            yield from _wrapped(f"{number}. {sentence}", 0, "   ")


def advise(evidence: Evidence, planned: Planned, sizes: Sequence[int] | None = None) -> Advice:
    """The answer for a planned run.

    Args:
        evidence: of any runs and records; those of other tasks are left out by name.
        planned: the run.
        sizes: candidates; None: around the batch of the plan.
    """
    found = assess(evidence, planned, sizes)
    chart = branches(found)
    return Advice(found, chart, sentences(found, chart))


def _finding_lines(one: Branch, depth: int) -> list[str]:
    finding = one.finding
    parts = [part for part in (finding.measured, finding.source) if part]
    lines = _wrapped(f"{finding.taken}: {'; '.join(parts)}" if parts else finding.taken, depth, "  ", first="  ")
    if one.then and finding.taken == NO:
        lines += _wrapped(f"-> {one.then.replace('`', '')}", depth, "     ", first="  ")
    if one.command:
        lines.append(f"{'  ' * depth}  -> {one.command}")
    return lines


def _wrapped(text: str, depth: int, indent: str, *, first: str = "") -> list[str]:
    """Lines of at most 80 letters, none broken inside of a command in backticks."""
    whole = re.sub(r"`[^`]*`", lambda found: found[0].replace(" ", _NBSP), text)
    before = "  " * depth
    lines = textwrap.wrap(whole, WIDTH, initial_indent=before + first, subsequent_indent=before + indent,
                          break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return [line.replace(_NBSP, " ") for line in lines]


def _cell(found: Assessment, key: str, size: int) -> str:
    one, quantity = found.at(key, size), found.quantities.get(key)
    if one.kind == NONE or quantity is None:
        return NONE
    interval = interval_text(one, quantity.unit)
    unit = quantity.unit
    value = value_text(one, unit).removesuffix(" steps").removesuffix(" samples")
    interval = {"unknown": "", "exact": "", TOO_WIDE: "not known"}.get(interval, interval)
    return f"{value}{_MARK.get(one.kind, '')}\n{_short(interval)}"


def _short(interval: str) -> str:
    """Without units that both ends share: they stand in the value above.

    >>> _short("11.9 ms to 12.9 ms"), _short("900 ms to 1.1 s"), _short("32 to 64")
    ('11.9-12.9', '900 ms-1.1 s', '32-64')
    """
    if " to " not in interval:
        return interval
    low, high = interval.split(" to ")
    units = [end.partition(" ")[2] for end in (low, high)]
    if units[0] == units[1]:
        low, high = (end.partition(" ")[0] for end in (low, high))
    return f"{low}-{high}"


def _plain(one: Estimate) -> dict[str, Any]:
    return {"value": one.value, "low": one.low, "high": one.high, "kind": one.kind}
