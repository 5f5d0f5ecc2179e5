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
