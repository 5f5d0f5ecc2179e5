"""The fault matrix with what the tests of this run say to it, printed at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.faults.matrix import MATRIX, Row


class FaultTable:
    """A plugin of pytest; with xdist the process that hands the tests out sees all reports."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._outcomes: dict[str, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down what became of a test, its parameters together."""
        test = report.nodeid.partition("[")[0].partition("@")[0]  # xdist appends its group
        self._seconds[test] += report.duration
        if report.when == "call" or report.outcome != "passed":
            self._outcomes[test].add(report.outcome)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a line per row, if tests of faults ran."""
        if not any(test.startswith("tests/faults/") for test in self._outcomes):
            return
        terminalreporter.section("fault matrix")
        for row in MATRIX:
            for line in self.lines(row):
                terminalreporter.line(line)
        met = sum(self.verdict(row) == "met" for row in MATRIX)
        terminalreporter.line(f"{met} of {len(MATRIX)} rows met in this run")

    def verdict(self, row: Row) -> str:
        """`met`, `FAILED`, `partly` or `not met` as the matrix owns up to; `not run` if a test is missing."""
        outcomes = set().union(*(self._outcomes.get(test, {"not run"}) for test in row.tests))
        if "failed" in outcomes:
            return "FAILED"
        if not row.tests:
            return "not met"
        if outcomes != {"passed"}:
            return "not run"
        return "partly" if row.not_met else "met"

    def lines(self, row: Row) -> Iterator[str]:
        """The row with its verdict and seconds, the tests that hold it, and what is missing."""
        seconds = sum(self._seconds.get(test, 0.0) for test in row.tests)
        yield f"{row.number:3}  {self.verdict(row):8}{seconds:7.1f} s  {row.fault}: {row.outcome}"
        for test in row.tests:
            yield f"{'':24}{test.removeprefix('tests/')}"
        if row.not_met:
            yield f"{'':24}missing: {row.not_met}"
