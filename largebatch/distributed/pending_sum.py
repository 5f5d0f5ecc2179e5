"""An asynchronous reduction: the caller waits only when it reads the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class PendingSum:
    """The result of a reduction that may still be in flight."""

    _values: Tensor
    _work: Any = None
    _copied: Any = None
    _result: list[float] | None = None

    def result(self) -> list[float]:
        """Wait for the sum and return it."""
        if self._result is None:
            if self._work is not None:
                self._work.wait()
            if self._copied is not None:
                self._copied.synchronize()
            self._result = cast("list[float]", self._values.tolist())
        return self._result


def start_sum(values: Tensor, world_size: int, group: dist.ProcessGroup | None = None) -> PendingSum:
    """Start the element-wise sum of a float64 vector over the ranks of a group (None: all), asynchronously.

    On a GPU the copy to the host is queued behind the kernels already launched, so `result()` one step later adds
    no synchronisation to the step.
    """
    assert values.dtype == torch.float64
    work = dist.all_reduce(values, group=group, async_op=True) if world_size > 1 else None
    if values.device.type != "cuda":
        return PendingSum(values, work)
    if work is not None:
        work.wait()  # blocks the stream, not the host
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    copied = torch.cuda.current_stream().record_event()
    return PendingSum(host, None, copied)
