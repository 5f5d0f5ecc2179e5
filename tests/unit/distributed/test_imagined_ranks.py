"""Collectives of a job of which one rank is there."""

from __future__ import annotations

import torch

from largebatch.distributed.imagined_ranks import imagined_ranks
from largebatch.distributed.rows import gather_rows, sum_own_rows
from largebatch.distributed.runtime import Runtime


def test_other_ranks_send_what_this_one_sends_and_sums_change_nothing():
    rows = torch.arange(1.0, 5.0).view(2, 2)
    with imagined_ranks(3), Runtime.open(on_cpu=True) as runtime:
        assert gather_rows(runtime, rows, [2, 2, 1]).tolist() == [*rows.tolist(), *rows.tolist(), rows[0].tolist()]
        whole = torch.arange(10.0).view(5, 2)
        assert sum_own_rows(runtime, whole, [2, 2, 1]).tolist() == whole[:2].tolist()
