"""One page of everything that runs, measurements and studies have left behind."""

from __future__ import annotations

from largebatch.run_report.page import write_report
from largebatch.run_report.reading import read_evidence
from largebatch.run_report.records import Evidence, RunRecord

__all__ = ["Evidence", "RunRecord", "read_evidence", "write_report"]
