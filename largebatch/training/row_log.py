"""Rows of metrics.jsonl, W&B and TensorBoard: what every row has, and what an observer of your own may add."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from largebatch.records.metric_keys import metric_key
from largebatch.records.trackers import Row, Tracker
from largebatch.training.progress import Progress

POSITION = ("step", "samples_seen", "epoch", "wall_s")
"""What every row has, whatever else."""
_KEY = re.compile(r"[\w.-]+(/[\w.-]+)+")  # a section and a name, as W&B and TensorBoard group them


class RowLog:
    """Hands rows to the trackers with the keys that every row has.

    Args:
        trackers: on rank 0; none on other ranks.
        num_samples: of the training set, to count epochs.
    """

    def __init__(self, trackers: Sequence[Tracker], *, num_samples: int) -> None:
        self.trackers = trackers
        self.num_samples = num_samples
        self._started = time.monotonic()
        self._step, self._of_step = -1, Row()

    def log(self, progress: Progress, values: Row) -> None:
        """Log `values` at the position of `progress`."""
        if progress.step != self._step:
            self._step, self._of_step = progress.step, Row()
        self._of_step |= values
        if not self.trackers:
            return
        row: Row = {
            "step": progress.step,
            "samples_seen": progress.samples_seen,
            "epoch": progress.samples_seen / self.num_samples,
            "wall_s": time.monotonic() - self._started,
        }
        for tracker in self.trackers:
            tracker.log(row | values)

    def at(self, step: int) -> Row:
        """What was logged after `step` on this rank; empty for a step that was not the last one with a row."""
        return self._of_step if step == self._step else Row()


def own_row(values: Mapping[str, Any]) -> Row:
    """The row of an observer of your own: numbers under keys that are not taken.

    >>> own_row({"mine/spread": 0.5})
    {'mine/spread': 0.5}

    Raises:
        ValueError: for a key without a section, a key of this package, or a value that is not one number.
    """
    row = Row()
    for key, value in values.items():
        if not isinstance(key, str) or _KEY.fullmatch(key) is None:
            raise ValueError(f"run.log: the key {key!r} is not SECTION/NAME of letters, digits, _, - and dots.")
        if metric_key(key) is not None:
            raise ValueError(
                f"run.log: {key} is a key of largebatch, whose rows would then hold two things under one name. Log it "
                f"under a section of your own, such as mine/{key.rpartition('/')[2]}."
            )
        row[key] = _number(key, value)
    return row


def _number(key: str, value: Any) -> int | float:
    plain = value.item() if getattr(value, "shape", None) == () else value  # of a GPU's tensor: the host waits
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        what = f"of shape {list(value.shape)}" if getattr(value, "shape", ()) else f"a {type(value).__name__}"
        raise ValueError(f"run.log: {key} is {what}, and a row holds numbers. Log one number per key.")
    return plain
