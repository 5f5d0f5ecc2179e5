"""Counts what a process group is asked to do."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

# One event of a trace. Only these are parsed: of a training, they are one in a hundred, and to have torch make Python
# objects of all events takes twenty times as long as to train.
_OF_GLOO = re.compile(r'\{[^{}]*"name": "gloo:[^{}]*(?:\{[^{}]*\})?[^{}]*\}')


def count_collectives(function: Callable[..., Any], *arguments: Any) -> tuple[Counter[tuple[str, int]], Any]:
    """Collectives by kind and number of elements while `function` runs, as gloo itself tells, and what it returned.

    A barrier has 0 elements.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        result = function(*arguments)
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        trace = Path(folder, "trace.json").read_text()
    events = [json.loads(event) for event in _OF_GLOO.findall(trace)]
    assert len(events) == trace.count('"gloo:'), "all were read"
    shapes = [event.get("args", {}).get("Input Dims") for event in events]
    calls = Counter(
        (event["name"].removeprefix("gloo:"), int(np.prod(dims[0])) if dims else 0)
        for event, dims in zip(events, shapes, strict=True)
    )
    return calls, result
