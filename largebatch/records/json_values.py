"""Makes values ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def json_values(value: Any) -> Any:
    """The same value as JSON holds it: lists for arrays and tuples, texts for keys, None for NaN and infinity.

    >>> json_values({1: (0.5, float("inf"))})
    {'1': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): json_values(part) for key, part in value.items()}
    if hasattr(value, "tolist"):  # arrays and scalars of numpy
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [json_values(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
