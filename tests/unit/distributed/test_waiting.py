"""The clock of those who wait for signs of others."""

from __future__ import annotations

import pytest

from largebatch.distributed import waiting
from largebatch.distributed.waiting import AwakeClock


def test_a_pause_of_the_whole_process_is_no_silence_of_others(monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    clock = AwakeClock(longest_s=10.0)
    for pause_s, awake_s in ((5.0, 5.0), (5.0, 10.0), (1800.0, 20.0), (5.0, 25.0)):
        now[0] += pause_s
        assert clock() == awake_s
