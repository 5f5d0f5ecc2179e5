"""A nested config by dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; a section without keys is a value.

    >>> flat({"a": {"b": 1, "c": [2]}, "d": {}})
    {'a.b': 1, 'a.c': [2], 'd': {}}
    """
    if not isinstance(config, Mapping) or not config:
        return {prefix: config} if prefix else {}
    parts = (flat(part, f"{prefix}.{key}" if prefix else str(key)) for key, part in config.items())
    return {key: value for part in parts for key, value in part.items()}
