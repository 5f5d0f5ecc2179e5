"""What is known of a key of metrics.jsonl, and of the keys that one observer writes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class MetricKey:
    """A key of the rows of metrics.jsonl, which W&B and TensorBoard show under the same name.

    Attributes:
        name: as in the rows; `GROUP` stands for the name of a group of parameters, `METRIC` for that of a metric.
        unit: the value's; a dash for plain numbers.
        meaning: one sentence without a full stop.
    """

    name: str
    unit: str
    meaning: str

    def matches(self, key: str) -> bool:
        """Whether `key` is this one.

        >>> MetricKey("noise_scale/GROUP/trace", "-", "").matches("noise_scale/stem/trace")
        True
        """
        pattern = re.escape(self.name).replace("GROUP", r"[^/]+").replace("METRIC", r"[^/]+(?<!_stderr)")
        return re.fullmatch(pattern, key) is not None


@dataclass(frozen=True)
class MetricFamily:
    """Keys that one observer writes.

    Attributes:
        asked_by: the config keys that turn them on; empty: every run has them.
        cost: of a measurement or of a run, with the conditions it was measured under.
        keys: in the order of the table.
    """

    asked_by: str
    cost: str
    keys: tuple[MetricKey, ...] = field(default=())


def family(asked_by: str, cost: str, *rows: tuple[str, str, str]) -> MetricFamily:
    """Keys as (name, unit, meaning)."""
    return MetricFamily(asked_by, cost, tuple(MetricKey(*row) for row in rows))
