"""Gradients that are products of two thin matrices on their way: PowerSGD (Vogels et al. 2019), by torch's hook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from largebatch.distributed.of_rank0 import of_rank0
from largebatch.distributed.runtime import Runtime
from largebatch.distributed.transfer import receive, send

_COUNTERS, _ERROR = "counters", "error/"


@dataclass(frozen=True)
class PowerSGDOptions:
    """Those of torch's `PowerSGDState`, with its defaults.

    Attributes:
        matrix_approximation_rank: columns of the two matrices: more are closer to the gradient, and more to send.
        start_powerSGD_iter: steps before the first one that is compressed; at least 2.
        min_compression_rate: a gradient is compressed if that makes it smaller by more than this factor.
        use_error_feedback: each rank adds what a step left out of its gradient to the next one.
        warm_start: each step starts from the matrices of the one before.
        orthogonalization_epsilon: added to the norms of columns: above 0 where a gradient may be all 0.
        batch_tensors_with_same_shape: compresses gradients of the same shape at once.
    """

    matrix_approximation_rank: int = 1
    start_powerSGD_iter: int = 1000  # noqa: N815, torch's name
    min_compression_rate: float = 2
    use_error_feedback: bool = True
    warm_start: bool = True
    orthogonalization_epsilon: float = 0
    batch_tensors_with_same_shape: bool = False

    def __post_init__(self) -> None:
        if self.matrix_approximation_rank < 1:
            raise ValueError(f"matrix_approximation_rank={self.matrix_approximation_rank}: use 1 or more.")
        if self.start_powerSGD_iter < 2:
            raise ValueError(
                f"start_powerSGD_iter={self.start_powerSGD_iter}: DDP lays out its buckets anew after the first step, "
                "and PowerSGD remembers by bucket. Use 2 or more steps."
            )


class PowerSGD:
    """Reduces DDP's buckets, and keeps what a rank left out of its own gradients for its next ones.

    What ranks get is no mean of their gradients: it is inexact, and other ranks or another cut make another run.

    A checkpoint holds the errors of all ranks, one gradient for each. As many ranks go on bit for bit. Another number
    of ranks starts from the mean of the errors: the sum over ranks, which alone counts, is the same up to rounding.

    Args:
        runtime: the job.
        options: of the compression.
        module: the unwrapped model.

    Raises:
        ValueError: if a trained parameter is a scalar or empty: torch's hook fails in its first compressed step.
    """

    def __init__(self, runtime: Runtime, options: PowerSGDOptions, module: nn.Module) -> None:
        trained = [(name, one) for name, one in module.named_parameters() if one.requires_grad]
        if odd := [f"{name} {list(one.shape)}" for name, one in trained if not one.dim() or not one.numel()]:
            raise ValueError(
                f"precision.gradient_compression=powersgd: {len(odd)} trained parameters have no dimension or no "
                f"elements: {', '.join(odd[:3])}. Torch's PowerSGD makes no matrix of them. Give a scalar the shape "
                "[1], freeze them, or use bf16."
            )
        self._runtime = runtime
        self._state = PowerSGDState(None, **asdict(options))

    def __call__(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Start to reduce a bucket."""
        future: torch.futures.Future[Tensor] = powerSGD_hook(self._state, bucket)
        if self._runtime.device.type == "cpu":
            # Later rounds start in threads of gloo when earlier ones end: ranks must have one bucket at a time.
            future.wait()
        return future

    def state(self) -> dict[str, Tensor]:
        """What later steps depend on, on rank 0 alone: errors as [world size, elements of the bucket].

        Every rank calls it. The rows come one by one, so no GPU holds them all.
        """
        state = self._state
        _, keys, place, *_ = state.rng.get_state()
        found = {_COUNTERS: torch.tensor([state.iter, int(place), *map(int, keys)])}
        for kind, by_bucket in self._shared().items():
            found |= {f"{kind}{index}": values.clone() for index, values in by_bucket.items()}
        for index, own in sorted(state.error_dict.items()):
            if (rows := self._gathered(own)) is not None:
                found[f"{_ERROR}{index}"] = rows
        return found if self._runtime.is_main else {}

    def load(self, saved: Mapping[str, Tensor]) -> list[str]:
        """Go on as the ranks that `saved` is of; before the first step, on every rank alike.

        Args:
            saved: as `state` returned it on rank 0; elsewhere the tensors may lie on the device "meta".

        Returns:
            What a person should know of it.
        """
        if not saved:
            return ["no state of PowerSGD was saved: it starts anew, with no errors to make up for"]
        notes: dict[str, None] = {}
        counters = of_rank0(self._runtime, saved[_COUNTERS]).tolist()
        self._state.iter = counters[0]
        self._state.rng.set_state(("MT19937", np.array(counters[2:], dtype=np.uint32), counters[1], 0, 0.0))
        for kind, by_bucket in self._shared().items():
            for name in sorted(name for name in saved if name.startswith(kind)):
                by_bucket[_bucket_of(name)] = self._placed(of_rank0(self._runtime, saved[name]))
        for name in sorted(name for name in saved if name.startswith(_ERROR)):
            rows = saved[name]
            if len(rows) == self._runtime.world_size:
                own = self._own_row(rows)
            else:
                notes[f"PowerSGD: {self._runtime.world_size} ranks share the mean error of {len(rows)}"] = None
                own = of_rank0(self._runtime, rows.mean(dim=0))
            self._state.error_dict[_bucket_of(name)] = self._placed(own)
        return list(notes)

    def _shared(self) -> dict[str, dict[int, Tensor]]:
        """What all ranks have alike."""
        return {"p/": self._state.p_memory_dict, "q/": self._state.q_memory_dict}

    def _placed(self, values: Tensor) -> Tensor:
        return values.to(self._runtime.device, copy=True)

    def _gathered(self, own: Tensor) -> Tensor | None:
        if not self._runtime.is_main:
            send(own, 0)
            return None
        rows = torch.empty((self._runtime.world_size, len(own)), dtype=own.dtype)
        rows[0] = own
        for rank in range(1, self._runtime.world_size):
            received = torch.empty_like(own)
            receive(received, rank)
            rows[rank] = received
        return rows

    def _own_row(self, rows: Tensor) -> Tensor:
        if self._runtime.is_main:
            for rank in range(1, self._runtime.world_size):
                send(self._placed(rows[rank]), rank)
            return rows[0]
        own = torch.empty(rows.shape[1:], dtype=rows.dtype, device=self._runtime.device)
        receive(own, 0)
        return own


def _bucket_of(name: str) -> int:
    return int(name.rpartition("/")[2])
