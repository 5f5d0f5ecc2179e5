"""An asynchronous reduction: the caller waits only when it reads the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor


@dataclass
class PendingSum:
    """The result of a reduction that may still be in flight."""

    _values: Tensor
    _work: Any = None
    _copied: Any = None

    def result(self) -> list[float]:
        """Wait for the sum and return it."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        if self._copied is not None:
            self._copied.synchronize()
        return cast("list[float]", self._values.tolist())
