"""One page of everything that runs, measurements and studies have left behind."""

from __future__ import annotations

from largebatch.records.report.evidence import Evidence, RunRecord
from largebatch.records.report.page import write_report
from largebatch.records.report.reading import read_evidence

__all__ = ["Evidence", "RunRecord", "read_evidence", "write_report"]
