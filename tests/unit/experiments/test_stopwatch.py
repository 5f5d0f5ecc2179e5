"""The seconds of a call, on devices by any name."""

import time

import pytest

from largebatch.experiments.stopwatch import seconds_of


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_a_cpu_is_idle_by_any_of_its_names(device: str):
    assert seconds_of(lambda: time.sleep(0.01), device, repeats=2) >= 0.009
