"""Counts what a process group is asked to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def count_collectives(function: Callable[..., Any], *arguments: Any) -> tuple[Counter[tuple[str, int]], Any]:
    """Collectives by kind and number of elements while `function` runs, as gloo itself tells, and what it returned.

    A barrier has 0 elements.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        result = function(*arguments)
    calls = Counter(
        (event.name.removeprefix("gloo:"), int(np.prod(event.input_shapes[0])) if event.input_shapes else 0)
        for event in profiler.events()
        if event.name.startswith("gloo:")
    )
    return calls, result
