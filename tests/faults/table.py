"""The fault matrix: what can happen to a run, what must come of it, and what the tests of this run say to it.

A row is made by `@pytest.mark.fault(NUMBER, FAULT, OUTCOME)` at a test that holds it, and `@pytest.mark.fault(NUMBER)`
at each further one; `missing=` says what of the outcome is not shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.shown import PROPERTY, Shown, in_words
from tests.marked import marks

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- the matrix: launch/test.sh faults --write-fault-matrix -->\n", "<!-- end of the matrix -->\n"


@dataclass(frozen=True)
class Row:
    """A row of the matrix.

    Attributes:
        number: of the row.
        fault: what happens.
        outcome: what must come of it.
        tests: `FILE::TEST`, without parameters.
        missing: what of the outcome is not shown; empty: nothing.
    """

    number: int
    fault: str
    outcome: str
    tests: tuple[str, ...]
    missing: str


def matrix() -> list[Row]:
    """The rows that the marks at the tests make, by number."""
    tests = defaultdict(list)
    for mark in marks("fault"):
        tests[mark.arguments[0]].append(mark.test)
    described = [(*mark.arguments, mark.options.get("missing", "")) for mark in marks("fault") if mark.arguments[1:]]
    return [
        Row(number, fault, outcome, tuple(tests[number]), missing)
        for number, fault, outcome, missing in sorted(described)
    ]


class FaultTable:
    """A plugin of pytest; with xdist the process that hands the tests out sees all reports.

    Args:
        writes: whether the table in README.md is replaced.
    """

    def __init__(self, writes: bool) -> None:
        self._writes = writes
        self._seconds: dict[str, float] = defaultdict(float)
        self._outcomes: dict[str, set[str]] = defaultdict(set)
        self._shown: dict[str, set[Shown]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down what became of a test, its parameters together."""
        test = report.nodeid.partition("[")[0]
        self._seconds[test] += report.duration
        self._shown[test] |= {tuple(value) for name, value in report.user_properties if name == PROPERTY}
        if report.when == "call" or report.outcome != "passed":
            self._outcomes[test].add(report.outcome)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the rows of which a test ran, if tests of faults did."""
        if not any(test.startswith("tests/faults/") for test in self._outcomes):
            return
        terminalreporter.section("fault matrix")
        rows = matrix()
        for row in rows:
            if self._outcomes.keys() & row.tests or self.verdict(row) == "soak":
                for line in self.lines(row):
                    terminalreporter.line(line)
        met = sum(self.verdict(row) == "met" for row in rows)
        terminalreporter.line(f"{met} of {len(rows)} rows met in this run")
        if self._writes and (left := [row.number for row in rows if self.verdict(row) == "not run"]):
            terminalreporter.line(f"README.md is not written: rows {left} were not run")
        elif self._writes:
            before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
            after = rest.partition(END)[2]
            README.write_text(before + BEGIN + self.markdown() + END + after, encoding="utf-8")

    def verdict(self, row: Row) -> str:
        """`met`, `FAILED`, or `partly` where a mark owns up to it; `soak` or `not run` if a test has not run."""
        outcomes = set().union(*(self._outcomes.get(test, {"not run"}) for test in row.tests))
        if "failed" in outcomes:
            return "FAILED"
        if outcomes != {"passed"}:
            soak = {mark.test for mark in marks("soak")}
            return "soak" if {test for test in row.tests if test not in self._outcomes} <= soak else "not run"
        return "partly" if row.missing else "met"

    def lines(self, row: Row) -> Iterator[str]:
        """The row with its verdict and seconds, the tests that hold it, what they started, and what is missing."""
        yield f"{row.number:3}  {self.verdict(row):8}{self._spent(row):7.1f} s  {row.fault}: {row.outcome}"
        if self.verdict(row) not in ("not run", "soak"):
            yield f"{'':24}shown with {self._shown_with(row)}"
        for test in row.tests:
            yield f"{'':24}{test.removeprefix('tests/')}"
        if row.missing:
            yield f"{'':24}missing: {row.missing}"

    def markdown(self) -> str:
        """The table of README.md."""
        head = "| # | fault: required outcome | result | shown with | s |\n|---|---|---|---|---|\n"
        return head + "".join(
            f"| {row.number} | {row.fault}: {row.outcome} | {self.verdict(row)} | {self._shown_with(row)} "
            f"| {self._spent(row):.1f} |\n"
            for row in matrix()
        )

    def _spent(self, row: Row) -> float:
        return sum(self._seconds.get(test, 0.0) for test in row.tests)

    def _shown_with(self, row: Row) -> str:
        if self.verdict(row) in ("soak", "not run"):
            return ""
        return in_words(set().union(*(self._shown.get(test, set()) for test in row.tests)))
