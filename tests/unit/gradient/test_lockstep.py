"""Functions side by side see what their caller has set up."""

from __future__ import annotations

import torch

from largebatch.diagnostics.memory.live_bytes import LiveBytes
from largebatch.gradient.lockstep import Lockstep


def test_a_mode_around_the_caller_sees_the_operations_of_the_functions():
    with LiveBytes() as memory:
        lockstep = Lockstep(torch.device("cpu"), lambda place, values: values)
        made = lockstep.run([lambda: torch.ones(10), lambda: torch.ones(10)])
    assert (len(made), memory.live) == (2, 80)
