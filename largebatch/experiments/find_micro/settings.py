"""Schema of the section `find_micro`, and the micro-batches that a run may have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from largebatch.batch.plan import BatchPlan
from largebatch.diagnostics.memory.budget import parse_bytes
from largebatch.diagnostics.settings import PositiveInt, Section
from largebatch.losses.coupled import is_coupled
from largebatch.run.config.findings import Findings
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import solve_plan
from largebatch.run.prepare import Prepared


def _bytes(value: Any) -> Any:
    return value if value is None else parse_bytes(str(value))


class FindMicroConfig(Section):
    """The memory that micro-batches are to fit into, and the steps of each.

    Attributes:
        memory: bytes of tensors that a rank may have; None: what its GPU has.
        headroom: share of that which stays free.
        start: samples of the first micro-batch; None: a 32nd of a rank's share.
        warmup: steps of each size before those that are timed.
        steps: of each size that are timed.
        near: speeds that are so close to the best one, as a share of it, are as good.
    """

    memory: Annotated[int | None, BeforeValidator(_bytes)]
    headroom: Annotated[float, Field(ge=0, lt=1)]
    start: PositiveInt | None
    warmup: Annotated[int, Field(ge=2)]
    steps: Annotated[int, Field(ge=3)]
    near: Annotated[float, Field(ge=0, lt=1)]

    def usable(self, num_bytes: int) -> int:
        """Bytes for tensors, of so many."""
        return int(num_bytes * (1 - self.headroom))


@dataclass(frozen=True)
class Sizes:
    """The micro-batches that a step of the run can have.

    Attributes:
        key: of the config that sets them.
        sizes: samples, ascending. Of `batch.max_micro` those of the largest micro-batch of a rank, whose share is
            split evenly.
        share: samples of a rank per step, the most of them.
        start: the first that is tried, one of `sizes`.
        least: samples of the smallest micro-batch that the model takes, 1 or 2.
    """

    key: Literal["max_micro", "micro"]
    sizes: tuple[int, ...]
    share: int
    start: int
    config: TrainConfig
    global_batch_size: int
    world_size: int
    least: int = 1

    def in_pairs(self) -> Sizes:
        """Those that leave no micro-batch of one sample, for a model that fails on it.

        The run's own is among them: its dry run passed.
        """
        kept = tuple(size for size in self.sizes if min(self.plan(size).micro_batch_sizes) > 1)
        start = max((size for size in kept if size <= self.start), default=kept[0])
        return replace(self, sizes=kept, start=start, least=2)

    def plan(self, size: int) -> BatchPlan:
        """As the run has it with `key` at `size`."""
        batch = self.config.batch.model_copy(update={self.key: size})
        return solve_plan(self.config.model_copy(update={"batch": batch}), self.global_batch_size, self.world_size)

    def at_most(self, size: int) -> int | None:
        """The largest of the sizes that is not above `size`."""
        return max((one for one in self.sizes if one <= size), default=None)


def even_sizes(share: int) -> tuple[int, ...]:
    """Largest parts of a share that is split evenly, into any number of parts.

    >>> even_sizes(10)
    (1, 2, 3, 4, 5, 10)
    """
    return tuple(sorted({-(-share // count) for count in range(1, share + 1)}))


def pinned_sizes(global_batch_size: int, world_size: int) -> tuple[int, ...]:
    """Pinned micro-batches of which each rank has at least one.

    >>> pinned_sizes(9, 2), pinned_sizes(9, 4)
    ((1, 2, 3, 4, 5), (1, 2))
    """
    share = -(-global_batch_size // world_size)
    most = share if world_size == 1 else min(share, (global_batch_size - 1) // (world_size - 1))
    return tuple(range(1, max(most, 1) + 1))


def sizes_of(prepared: Prepared, options: FindMicroConfig, *, is_on_gpu: bool) -> Sizes:
    """The micro-batches of the run; with a ramp, of its largest batch.

    Raises:
        ConfigError: with every problem: all micro-batches are in memory together, there is no limit, or no such start.
    """
    findings, config, ramp = Findings(), prepared.config, prepared.numbers.ramp
    findings.errors += _refusals(prepared, options, is_on_gpu=is_on_gpu)
    largest = max(ramp.plans, key=lambda plan: plan.global_batch_size)
    total, world_size = largest.global_batch_size, largest.world_size
    share = -(-total // world_size)
    is_pinned = config.batch.micro is not None
    sizes = pinned_sizes(total, world_size) if is_pinned else even_sizes(share)
    if options.start is not None and options.start > sizes[-1]:
        findings.errors.append(
            f"find_micro.start={options.start}: a micro-batch of {world_size} ranks and batch.total={total} has at "
            f"most {sizes[-1]} samples. Start below that."
        )
    findings.raise_if_any()
    start = max(size for size in sizes if size <= (options.start or max(share // 32, 1)))
    key: Literal["max_micro", "micro"] = "micro" if is_pinned else "max_micro"
    return Sizes(key, sizes, share, start, config, total, world_size)


def _refusals(prepared: Prepared, options: FindMicroConfig, *, is_on_gpu: bool) -> list[str]:
    config, errors = prepared.config, []
    together = "all micro-batches of a rank are in memory together, so that their size hardly changes the memory"
    if config.batch_norm == "exact":
        errors.append(f"batch_norm=exact: {together}. Use more ranks, or batch_norm=per_micro_batch.")
    if is_coupled(prepared.loss):
        errors.append(
            f"loss._target_={type(prepared.loss).__name__}: compares all samples of a global batch, so that a rank "
            "cannot try its passes alone. Predict its memory by `largebatch plan plan.memory=true`."
        )
    if not is_on_gpu and options.memory is None:
        errors.append(
            "find_micro.memory=null: a CPU has no memory of its own, and the kernel ends processes that take too much. "
            "Give the bytes of tensors that a rank may have, such as find_micro.memory=2GiB."
        )
    if not is_on_gpu and config.precision.compile:
        errors.append(
            f"precision.compile={config.precision.compile}: on CPUs tensors are counted operation by operation, and "
            "compiled code has none. Use precision.compile=false."
        )
    return errors
