"""Chooses the path of a tensor: plain loop, foreach, torch's fused kernels, or compiled kernels in C and Triton."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from largebatch.optim.kernels.compiler import kernels
from largebatch.optim.kernels.flat import Row, split_off_flat
from largebatch.optim.kernels.triton_steps import triton_kernels
from largebatch.optim.kernels.triton_tables import Work, works
from largebatch.optim.kernels.working import reason_against
from largebatch.optim.state import same_kind, uses_foreach

is_on_gpu: Callable[[Tensor], bool] = attrgetter("is_cuda")
"""Whether a tensor is on a GPU that Triton supports; also with ROCm builds of torch."""


class Paths(NamedTuple):
    """One step of an optimizer in five ways, each fed with the same terms (`forms`).

    Attributes:
        loop: takes columns (parameters, gradients, state, and step numbers if there are any), then terms.
        foreach: the same, for columns of one device and dtype.
        fused: takes rows of flat views of one dtype on a CPU (`flat`), then terms.
        compiled: the same.
        triton: takes works (`triton_tables`), the columns that they were made of, then terms.
    """

    loop: Callable[..., None]
    foreach: Callable[..., None]
    fused: Callable[..., None]
    compiled: Callable[..., None]
    triton: Callable[..., None]


class PathOptions(TypedDict):
    """The options of a parameter group that choose its path, explained at `LARS`."""

    foreach: bool | None
    fused: bool | None
    compile: bool | None


class _ForKernels(NamedTuple):
    """What of a group goes by compiled kernels.

    Attributes:
        rows: for C, float32 and float64 apart.
        launches: for Triton.
        on_gpu: columns that the launches were made of.
        rest: columns that take another path.
    """

    rows: list[list[Row]]
    launches: list[Work]
    on_gpu: list[list[Tensor]]
    rest: list[list[Tensor]]


def take_step(
    paths: Paths,
    columns: list[list[Tensor]],
    steps: list[Tensor] | None,
    terms: Any,
    *,
    foreach: bool | None,
    fused: bool | None,
    compile: bool | None,
) -> None:
    """One step of a group. All tensors are looked at first: what is refused leaves everything as it was.

    Args:
        paths: of the optimizer.
        columns: parameters, gradients and state, in parallel; gradients are only read.
        steps: step number of each parameter, a scalar on the CPU, which is advanced here; None: it has none.
        terms: coefficients of the step.
        foreach: as the group says.
        fused: likewise.
        compile: likewise; None: compiled kernels step what they can.

    Raises:
        ValueError: if a parameter cannot take the path that is demanded.
    """
    width = len(columns)
    rest = columns if steps is None else [*columns, steps]
    chosen, fused_rows = _ForKernels([], [], [[] for _ in rest], rest), list[list[Row]]()
    if compile:
        chosen = _demanded(rest, width)
    elif compile is None:
        chosen = _where_they_work(rest, width)
    rest = chosen.rest
    if fused or (fused is None and foreach is None and not compile):
        demanded_by = "fused=True" if fused else None
        fused_rows, rest = split_off_flat(rest[:width], rest[width:], demanded_by=demanded_by)
    if steps:
        torch._foreach_add_(steps, torch.tensor(1.0, device="cpu"), alpha=1.0)
    for rows in chosen.rows:
        if not isinstance(rows[0][0], FakeTensor):  # which has no numbers; the kernels need next to no memory
            paths.compiled(rows, terms)
    if chosen.launches:
        paths.triton(chosen.launches, chosen.on_gpu, terms)
    for rows in fused_rows:
        paths.fused(rows, terms)
    step = paths.foreach if uses_foreach(foreach, columns[0]) else paths.loop
    for same in same_kind(*rest):
        step(*same, terms)


def prepare_kernels(param_groups: list[dict[str, Any]]) -> None:
    """Compile in C, or import what Triton compiles at its first launch, for the devices of the last group.

    Raises:
        ValueError: if there is no C compiler, it fails, or Triton cannot be imported; the group is removed then.
    """
    on_gpu = set(map(is_on_gpu, param_groups[-1]["params"]))
    try:
        if True in on_gpu:
            _load(triton_kernels)
        if False in on_gpu:
            _load(kernels)
    except ValueError:
        param_groups.pop()
        raise


def _load(demanded: Callable[[], object]) -> None:
    try:
        demanded()
    except ValueError as error:
        raise ValueError(f"compile=True: {error}") from error


def _demanded(columns: Sequence[Sequence[Tensor]], width: int) -> _ForKernels:
    """All tensors, for kernels; the first `width` columns are parameters, gradients and state."""
    on_cpu, on_gpu = _split_by_device(columns)
    if on_gpu[0]:
        _load(triton_kernels)
    rows, _ = split_off_flat(on_cpu[:width], on_cpu[width:], demanded_by="compile=True")
    return _ForKernels(rows, works(*on_gpu[:width]), on_gpu, [[] for _ in columns])


def _where_they_work(columns: Sequence[Sequence[Tensor]], width: int) -> _ForKernels:
    """The tensors that kernels of this machine can take, and the rest."""
    on_cpu, on_gpu = _split_by_device(columns)
    rows, launches, rest = list[list[Row]](), list[Work](), on_cpu
    if _work_for(on_cpu[0]):
        rows, rest = split_off_flat(on_cpu[:width], on_cpu[width:], demanded_by=None)
    if on_gpu[0] and not isinstance(on_gpu[0][0], FakeTensor) and _work_for(on_gpu[0]):
        try:
            launches = works(*on_gpu[:width])
        except ValueError:  # of one tensor: then all of the group take the other path
            launches = []
    if on_gpu[0] and not launches:
        rest, on_gpu = [[*one, *other] for one, other in zip(rest, on_gpu, strict=True)], [[] for _ in columns]
    return _ForKernels(rows, launches, on_gpu, rest)


def _work_for(params: Sequence[Tensor]) -> bool:
    """Whether kernels work on the devices of these parameters; a warning says why they do not."""
    reasons = {
        device: reason
        for device in {param.device for param in params if not isinstance(param, FakeTensor)}
        if (reason := reason_against(device)) is not None
    }
    for device, reason in reasons.items():
        if device.type in ("cpu", "cuda"):  # elsewhere nobody expects them
            warnings.warn(
                f"LARS and LAMB step by torch's slower kernels: their own do not work on {device}. {reason} "
                "Last digits differ between the two. If other ranks of the job have them, set compile=False on all.",
                stacklevel=2,
            )
    return not reasons


def _split_by_device(columns: Sequence[Sequence[Tensor]]) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """The columns for the parameters on a CPU, and for those on a GPU; the first column has the parameters."""
    on_gpu = list(map(is_on_gpu, columns[0]))
    on_cpu = [not is_there for is_there in on_gpu]
    first, second = ([list(itertools.compress(column, chosen)) for column in columns] for chosen in (on_cpu, on_gpu))
    return first, second
