"""The files of an advice: its record with the picture, and a page of all that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from largebatch.experiments.advice.answer import Advice
from largebatch.records.report import read_evidence, write_report
from largebatch.records.report.publish import write_result
from largebatch.records.run_folder import environment


def write_advice(advice: Advice, folder: Path, *, about: Mapping[str, Any]) -> Path:
    """Write advice.json, advice.png and page.html; returns the page.

    Args:
        advice: the answer.
        folder: that it was measured in.
        about: what the record says besides the answer and the environment.

    Raises:
        OSError: if a file cannot be written.
    """
    write_result(advice.result(), folder / "advice.json", about={**about, "environment": environment()})
    page = folder / "page.html"
    write_report(read_evidence([folder]), page, title=advice.result().heading)
    return page
