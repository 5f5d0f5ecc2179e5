"""Device, precision, ranks and exact reductions. The only file that imports accelerate.

We use accelerate for the device, the process group, mixed precision and model wrapping. We do not use its loaders,
schedulers, `accumulate()` or `save_state()`: each of them changes the samples of a step or their weights.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch.distributed.generators import seed_generators
from largebatch.distributed.membership import Membership, TimeLimits, join_process_group, require_same_job
from largebatch.distributed.number_format import format_of_all_ranks
from largebatch.distributed.pending_sum import PendingSum, start_sum
from largebatch.distributed.placement import Inputs as Inputs
from largebatch.distributed.placement import placed, placed_tensor
from largebatch.distributed.process_group import own_device
from largebatch.distributed.sending import sent
from largebatch.distributed.wrapping import BUCKET_MB, wrap_model

if TYPE_CHECKING:  # imported at run time only by `_accelerator`: verbs without a job start without accelerate
    from accelerate import Accelerator

_ACCELERATE_PRECISION = {"fp64": "no", "fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass
class Runtime(contextlib.AbstractContextManager["Runtime"]):
    """One rank's view of the job. As a context manager it leaves the job on exit.

    Attributes:
        device: device of this rank.
        rank, local_rank, world_size: as the launcher sets them; 0, 0 and 1 without one.
        precision: fp64, fp32, bf16 or fp16; the last two use autocast over fp32 weights.
        membership: of the process group: signs of life, time limits, the way out.
    """

    device: torch.device
    rank: int
    local_rank: int
    world_size: int
    precision: str
    membership: Membership = field(repr=False)
    _accelerator: Accelerator = field(repr=False)

    @classmethod
    def open(
        cls,
        *,
        precision: str = "fp32",
        limits: TimeLimits | None = None,
        on_cpu: bool = False,
    ) -> Runtime:
        """Join the job that the launcher's environment describes, or open one of a single process.

        Args:
            precision: fp64, fp32, bf16 or fp16; auto: bf16 where the GPU of every rank has bfloat16, else fp32.
            limits: how long ranks wait for each other; None: the defaults of `TimeLimits`.
            on_cpu: leave the GPUs of this machine alone.

        Raises:
            LauncherError: if ranks are missing, rank 0 cannot be reached, two ranks have the same GPU, the backend
                cannot connect the ranks, or accelerate sees other ranks or another device.
            ValueError: for fp16 without a GPU, where autocast and loss scaling would silently do nothing.
        """
        if precision == "fp16" and not torch.cuda.is_available():
            raise ValueError("precision fp16 needs a GPU: on a CPU it would silently train in fp32. Use bf16 or fp32.")
        device = torch.device("cpu") if on_cpu else own_device(os.environ)
        membership = join_process_group(os.environ, device, limits or TimeLimits())
        try:
            precision = format_of_all_ranks(device) if precision == "auto" else precision
            accelerator = _accelerator(precision, on_cpu=device.type == "cpu")
            require_same_job(os.environ, accelerator.num_processes, device, accelerator.device)
        except BaseException as error:
            _forget_state()  # a partial state would be reused as complete by the next call
            membership.end(error)
            raise
        return cls(
            device=accelerator.device,
            rank=accelerator.process_index,
            local_rank=accelerator.local_process_index,
            world_size=accelerator.num_processes,
            precision=precision,
            membership=membership,
            _accelerator=accelerator,
        )

    def close(self) -> None:
        """Leave the job. A process group that existed before `open` stays. `open` may be called again.

        While an exception is handled, as in a `finally` clause, this never waits for other ranks: see `Membership.end`.
        """
        self.__exit__(*sys.exc_info())

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _forget_state()
        self.membership.end(error)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module, *, bucket_mb: float = BUCKET_MB, outputs_in_float32: bool = True) -> nn.Module:
        """Move the model to the device, apply precision, and wrap it in DistributedDataParallel if there are ranks.

        Gradients then are zeros in DDP's buckets, of `bucket_mb` MiB: see `wrap_model`.
        """
        model = model.double() if self.precision == "fp64" else model
        return wrap_model(self._accelerator, model, bucket_mb, outputs_in_float32=outputs_in_float32)

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The module inside the result of `wrap`, to evaluate and to save."""
        return cast(nn.Module, model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model)

    def place(self, value: Inputs) -> Inputs:
        """Move a tensor or a dict of tensors to this rank's device, in double precision under fp64."""
        return placed(value, self.place_tensor)

    def place_tensor(self, value: Tensor) -> Tensor:
        """As `place`, for one tensor."""
        return placed_tensor(value, self.device, self.precision)

    def seed(self, key: int) -> None:
        """Seed the generators that models draw from (dropout, stochastic depth) with a 64-bit key."""
        seed_generators(key, self.device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the scale of fp16; in other precisions itself."""
        scaler = self._accelerator.scaler
        return loss if scaler is None else cast(Tensor, scaler.scale(loss))

    def backward(self, loss: Tensor) -> None:
        """Backward pass, scaled under fp16."""
        self.scaled(loss).backward()

    def grad_norm(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        """L2 norm of the whole gradient before clipping to `max_norm` (None: no clipping). Call it before `step`."""
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def step(self, optimizer: torch.optim.Optimizer, *, leaves_out: bool = False) -> None:
        """Optimizer step, unless `leaves_out`; under fp16 the loss scaler also skips it when a gradient overflowed."""
        scaler = self._accelerator.scaler
        if leaves_out and scaler is not None:
            scaler.update(scaler.get_scale())  # clears the unscaled flag and keeps the scale
        elif scaler is None and not leaves_out:
            optimizer.step()
        elif scaler is not None:
            scaler.step(optimizer)
            scaler.update()

    def start_sum(self, values: Tensor) -> PendingSum:
        """Start the element-wise sum of a float64 vector over ranks; see `pending_sum.start_sum`."""
        return start_sum(values, self.world_size)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over ranks, in float64."""
        return self.start_sum(sent(torch.tensor(values, dtype=torch.float64), self.device)).result()

    def sum_in_place(self, values: Tensor) -> None:
        """Replace a tensor by its element-wise sum over ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)

    def broadcast_tensor(self, values: Tensor) -> None:
        """Replace a tensor by that of rank 0, on every rank."""
        dist.broadcast(values, src=0)

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0 (text, numbers, None), on every rank."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.world_size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def waiting_for_main(self, *, is_long: bool = True) -> Iterator[None]:
        """Around long work of rank 0 alone: the others wait for it as long as at the start, and are not taken for lost.

        Every rank enters it; with an error on rank 0 the others learn of it by its signs of life. Work that is not
        `is_long`, as a copy in memory, ends without a barrier: the others meet rank 0 in their next collective.
        """
        if not is_long:
            yield
            return
        with self.membership.patience():
            yield
            self.barrier()

    def loss_scale_state(self) -> dict[str, Any]:
        """State of the fp16 loss scaler as plain numbers; empty in other precisions."""
        return {} if self._accelerator.scaler is None else dict(self._accelerator.scaler.state_dict())

    @property
    def loss_scale(self) -> float:
        """Factor of the loss in `backward`, and of gradients until they are unscaled; 1 except under fp16."""
        return float(self.loss_scale_state().get("scale", 1.0))

    def load_loss_scale_state(self, state: dict[str, Any]) -> None:
        """Restore what `loss_scale_state` returned."""
        if self._accelerator.scaler is not None and state:
            self._accelerator.scaler.load_state_dict(state)


def _accelerator(precision: str, *, on_cpu: bool) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # Each rank keeps its own buffers until `RunningStatistics.merge`; a broadcast would overwrite them.
    options = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=_ACCELERATE_PRECISION[precision],
        kwargs_handlers=[options],
    )


def _forget_state() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
