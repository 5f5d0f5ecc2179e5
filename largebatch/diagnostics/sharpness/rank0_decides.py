"""Rank 0 requests evaluations of a loss, and all ranks compute them.

Estimators stop when a number is small enough. If every rank ran them, a difference in the last bit, for example between
two types of CPU, could stop them at different times, and the next all-reduce would wait forever. So only rank 0 runs
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from largebatch.diagnostics.sharpness.subset import SubsetLoss
from largebatch.distributed.own_job import Job

Result = TypeVar("Result")
_END, _VALUE, _GRADIENT, _PRODUCT = range(4)


class LossOnRequest:
    """The `SubsetLoss` of all ranks for rank 0: each call makes every rank evaluate its share."""

    def __init__(self, loss: SubsetLoss, runtime: Job) -> None:
        self._loss = loss
        self._runtime = runtime
        self._weights = loss.weights
        self._evaluating = False

    def value(self, weights: Tensor) -> float:
        """See `SubsetLoss.value`."""
        return self._together(_VALUE, weights, lambda: self._loss.value(weights))

    def value_and_gradient(self, weights: Tensor) -> tuple[float, Tensor]:
        """See `SubsetLoss.value_and_gradient`."""
        return self._together(_GRADIENT, weights, lambda: self._loss.value_and_gradient(weights))

    def hessian_vector_product(self, vector: Tensor) -> Tensor:
        """Hv with H at the initial weights of the module."""
        return self._together(_PRODUCT, vector, lambda: self._loss.hessian_vector_product(self._weights, vector))

    def run(self, estimate: Callable[[LossOnRequest], Result]) -> Result | None:
        """`estimate(self)` on rank 0, while the other ranks evaluate their shares; None on these."""
        if not self._runtime.is_main:
            self._follow()
            return None
        try:
            return estimate(self)
        finally:
            # Not after a failed evaluation: the others wait in its all-reduce, where no announcement reaches them.
            if not self._evaluating:
                self._announce(_END)

    def _together(self, kind: int, vector: Tensor, evaluate: Callable[[], Result]) -> Result:
        self._evaluating = True
        self._announce(kind)
        self._broadcast(vector.contiguous())
        result = evaluate()
        self._evaluating = False
        return result

    def _follow(self) -> None:
        vector = torch.empty_like(self._weights)
        while (kind := self._announce(_END)) != _END:
            self._broadcast(vector)
            if kind == _VALUE:
                self._loss.value(vector)
            elif kind == _GRADIENT:
                self._loss.value_and_gradient(vector)
            else:
                self._loss.hessian_vector_product(self._weights, vector)

    def _announce(self, kind: int) -> int:
        """Broadcast the kind of the next evaluation from rank 0."""
        box = torch.tensor([kind], dtype=torch.int64, device=self._weights.device)
        self._broadcast(box)
        return int(box)

    def _broadcast(self, values: Tensor) -> None:
        if self._runtime.world_size > 1:
            self._runtime.broadcast_tensor(values)
