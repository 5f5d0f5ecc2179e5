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


# What a key is by default that came after a record: it changes nothing.
_NEUTRAL = ("null", '"none"', "false", "[]", "{}")


def changed_keys(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The keys in which two flat configs differ, their values as JSON.

    A key that the record of an earlier version lacks counts only if it is set: null, none, false and empty are not.

    >>> changed_keys({"seed": "0"}, {"seed": "0", "cooldown.length": "null"})
    []
    >>> changed_keys({"seed": "0", "clip_norm": "null"}, {"seed": "1", "clip_norm": "1.0", "scaling.eps": '"sde"'})
    ['clip_norm', 'scaling.eps', 'seed']
    """
    return [
        key
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and not (key not in before and now[key] in _NEUTRAL)
    ]
