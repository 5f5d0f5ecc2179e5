"""Out of memory on one rank: all ranks learn of it before anything is reduced, and can go on in smaller parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.distributed.gather import gather_floats, named_ranks
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import LocalPass
from largebatch.gradient.global_gradient import BatchResult, GlobalGradient
from largebatch.gradient.reductions import Reduction
from largebatch.gradient.snapshots import Buffers
from largebatch.gradient.step import Step, Weight

# How allocators and libraries with an allocator say it that have no exception of their own. Not all that accelerate's
# `should_reduce_batch_size` takes for a shortage: an operation that cuDNN does not support would only be tried again.
_TEXTS = (
    "out of memory.",
    "CUDA error: out of memory",
    "'out of memory'",  # NCCL, as in: Last error: Cuda failure 2 'out of memory'
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",  # of a work space that it could not have; releases before 9 have no other text
)
RESERVE_BYTES = 2**25  # for the collective after a shortage, and for what NCCL allocates by itself


class MicroBatchTooLargeError(RuntimeError):
    """A micro-batch did not fit into memory. Raised on every rank; nothing was reduced, and no gradient is left.

    Attributes:
        ranks: which ran out of memory.
        size: samples of the largest micro-batch of the step.
    """

    def __init__(self, ranks: tuple[int, ...], size: int) -> None:
        self.ranks, self.size = ranks, size
        super().__init__(
            f"Out of memory on {named_ranks(ranks)} with micro-batches of at most {size} "
            f"{'sample' if size == 1 else 'samples'}. Lower batch.max_micro; where it is 1 already, set "
            "precision.activation_checkpointing=true, or take a smaller model."
        )

    @property
    def next_size(self) -> int | None:
        """Half of the size, rounded up; None if there is no smaller one."""
        return None if self.size == 1 else -(-self.size // 2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a tensor could not be allocated, on a GPU or on the CPU.

    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")), is_out_of_memory(KeyError("x"))
    (True, False)
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


class IfItFits:
    """A `LocalPass` of which a failure for want of memory on one rank is known to all before anything is reduced.

    DDP reduces while the last backward pass computes: a rank that fails in it leaves the others in a collective that
    never ends. Here all passes come first, then one small sum says whether they went well everywhere. A reserve of
    32 MiB is given up for that sum. The reduction
    must be one that comes `Afterwards`, so no communication is hidden behind computation.

    Args:
        runtime: the job.
        module: the unwrapped model.
        local: how a rank computes its part.
    """

    def __init__(self, runtime: Runtime, module: nn.Module, local: LocalPass) -> None:
        self.loss, self.is_joint, self._local = local.loss, local.is_joint, local
        self._runtime, self._module = runtime, module
        self._reserve: Tensor | None = None

    def __call__(self, step: Step, parts: Iterator[Any], weight: Weight, reduction: Reduction) -> Tensor:
        """See `LocalPass`.

        Raises:
            MicroBatchTooLargeError: on every rank, if a pass ran out of memory on any.
        """
        if self._reserve is None:
            self._reserve = torch.empty(RESERVE_BYTES, dtype=torch.uint8, device=self._runtime.device)
        result = None
        try:
            result = self._local(step, parts, weight, reduction)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Behind the handler: inside of it the error keeps everything alive that the passes had computed.
        if result is None:
            self._make_room()
        table = gather_floats(self._runtime, [result is None])
        failed = tuple(rank for rank, (is_short,) in enumerate(table) if is_short)
        if result is None or failed:
            self._module.zero_grad()
            raise MicroBatchTooLargeError(failed, step.plan.max_micro_batch_size)
        return result

    def _make_room(self) -> None:
        """For what ranks tell each other of a shortage: its device may have no byte left."""
        self._reserve = None
        self._module.zero_grad()
        if self._runtime.device.type == "cuda":
            torch.cuda.empty_cache()


class Halving:
    """A gradient whose step, if it did not fit, is taken again from its first sample in micro-batches of half the size.

    All ranks do so alike: each of them hears of it before anything was reduced. The following steps keep the size.

    Args:
        gradient: with a local pass that is `IfItFits`.
        module: the unwrapped model, whose buffers are put back before a step is taken again.

    Attributes:
        once: the gradient, which raises where a step does not fit.
    """

    def __init__(self, gradient: GlobalGradient, module: nn.Module) -> None:
        self.once, self._module = gradient, module
        self.batches, self.local, self.reduction = gradient.batches, gradient.local, gradient.reduction
        self.clock, self.statistics, self.computing = gradient.clock, gradient.statistics, gradient.computing
        self.norms, self.state, self.load = gradient.norms, gradient.state, gradient.load

    def __call__(self, step: Step) -> BatchResult:
        """As `GlobalGradient`.

        Raises:
            MicroBatchTooLargeError: on every rank, if a single sample does not fit on one.
        """
        shortages: list[MicroBatchTooLargeError] = []
        while True:
            before = Buffers(self._module)
            try:
                return self.once(step)._replace(shortages=tuple(shortages))
            except MicroBatchTooLargeError as error:
                if error.next_size is None:
                    raise
                before.put_back()
                shortages.append(error.with_traceback(None))  # which holds what did not fit
            size = shortages[-1].next_size
            assert size is not None
            step = replace(step, plan=self.batches.shrink(step.samples_seen, size))
