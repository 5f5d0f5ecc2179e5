"""Out of memory on one rank: all ranks learn of it before anything is reduced, and can go on in smaller parts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.gather import gather_floats, named_ranks
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import (
    GradientResult,
    LossPerSample,
    MicroBatchSource,
    accumulate_gradients,
    sum_gradients,
)
from largebatch.gradient.flat_gradients import FlatGradients
from largebatch.gradient.ordered_reduction import OrderedReduction
from largebatch.gradient.reduction_clock import ReductionClock

# How allocators say it that have no exception of their own. Not all that accelerate's `should_reduce_batch_size` takes
# for a shortage: an operation that cuDNN does not support would only be tried again and again.
_TEXTS = ("out of memory.", "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


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


def accumulate_if_it_fits(
    runtime: Runtime,
    model: nn.Module,
    loss: LossPerSample,
    micro_batches: Iterable[MicroBatchSource],
    *,
    plan: BatchPlan,
    weight: float,
    random_key: int,
    clock: ReductionClock | None = None,
    ordered: OrderedReduction | None = None,
) -> GradientResult:
    """As `accumulate_gradients`, but a rank that runs out of memory is known to all before anything is reduced.

    DDP reduces while the last backward pass computes: a rank that fails in it leaves the others in a collective that
    never ends. Here all passes come first, then one small sum says whether they went well everywhere, and only then
    gradients are summed: no communication is hidden behind computation.

    Args:
        runtime: the job.
        model: as returned by `runtime.wrap`; its gradients are zero or None.
        loss: sums per sample.
        micro_batches: this rank's part of the global batch.
        plan: how the batch is cut and shared.
        weight: the one normalisation, 1 / (samples, or valid tokens, of the whole global batch): ranks are added up.
        random_key: draws inside the model are keyed by it and by the micro-batch's index, not by the rank.
        clock: measures exposed communication: all of the gradient's.
        ordered: cannot be had.

    Raises:
        MicroBatchTooLargeError: on every rank, if a pass ran out of memory on any.
    """
    assert ordered is None
    module, result = runtime.unwrap(model), None
    try:
        result = accumulate_gradients(
            runtime, module, loss, micro_batches, plan=plan, weight=weight, random_key=random_key
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Behind the handler: inside of it the error keeps everything alive that the passes had computed.
    if result is None and runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    failed = tuple(rank for rank, (is_short,) in enumerate(gather_floats(runtime, [result is None])) if is_short)
    if result is None or failed:
        FlatGradients(module).clear()
        raise MicroBatchTooLargeError(failed, plan.max_micro_batch_size)
    if clock is not None:
        clock.start()
    sum_gradients(runtime, module)
    return result._replace(communication_s=None if clock is None else clock.exposed_s())
