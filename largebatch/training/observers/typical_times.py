"""The usual times of a run, from its rows: what a prediction of another run is made of and graded by."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

_MOST = 4096  # rows that are kept; of longer runs every second, fourth, ... one
_POWER_EVERY_S = 1.0  # NVML answers in milliseconds


class TypicalTimes:
    """Collects the times of rows.

    Medians over rows without the first, which pays for warming up; where there is no other, of that one.

    Args:
        device: whose power is read with each row, where torch can.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rows: list[tuple[float, float, float]] = []
        self._stride, self._number = 1, 0
        self._steps, self._seconds = 0, 0.0
        self._boot = (0, 0.0)
        self._watts: list[float] | None = []
        self._next_power = 0.0

    def add(self, *, num_steps: int, step_s: float, data_s: float, communication_s: float) -> None:
        """A row over so many steps, with means of a step."""
        if self._number == 0:
            self._boot = (num_steps, num_steps * step_s)
        else:
            self._steps, self._seconds = self._steps + num_steps, self._seconds + num_steps * step_s
        if self._number % self._stride == 0:
            self._rows.append((step_s, data_s, communication_s))
        self._number += 1
        if len(self._rows) > _MOST:
            self._rows, self._stride = self._rows[::2], 2 * self._stride
        self._read_power()

    def values(self, *, steps_per_epoch: float) -> dict[str, Any]:
        """Seconds of `step_time`, `epoch_time`, `data_wait`, `exposed_communication`; `device_watts`. {} without rows.

        The time of an epoch is the mean over all steps but those of the first row: a few slow steps count in it, and
        not in the median.
        """
        if not self._rows:
            return {}
        step_s, data_s, communication_s = map(statistics.median, zip(*(self._rows[1:] or self._rows), strict=True))
        steps, seconds = (self._steps, self._seconds) if self._steps else self._boot
        found = {
            "step_time": step_s,
            "epoch_time": seconds / steps * steps_per_epoch,
            "data_wait": data_s,
            "exposed_communication": communication_s,
        }
        return found | ({"device_watts": statistics.fmean(self._watts)} if self._watts else {})

    def _read_power(self) -> None:
        """By NVML, as torch offers it; after one failure no more."""
        if self._watts is None or self._device.type != "cuda" or time.monotonic() < self._next_power:
            return
        self._next_power = time.monotonic() + _POWER_EVERY_S
        if len(self._watts) > _MOST:
            self._watts = self._watts[::2]
        try:
            self._watts.append(torch.cuda.power_draw(self._device) / 1000)  # mW
        except (ImportError, RuntimeError, OSError, AttributeError):  # without pynvml, or a card that does not tell
            self._watts = None
        except Exception as error:
            if not type(error).__module__.startswith("pynvml"):
                raise
            self._watts = None
