"""Chooses the path of a tensor: plain loop, foreach, torch's fused kernels, or compiled kernels in C and Triton."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from largebatch.optim.kernels.compiler import kernels
from largebatch.optim.kernels.flat import Row, split_off_flat
from largebatch.optim.kernels.triton_steps import triton_kernels
from largebatch.optim.kernels.triton_tables import Work, works
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
    compile: bool


def take_step(
    paths: Paths,
    columns: list[list[Tensor]],
    steps: list[Tensor] | None,
    terms: Any,
    *,
    foreach: bool | None,
    fused: bool | None,
    compile: bool,
) -> None:
    """One step of a group. All tensors are looked at first: what is refused leaves everything as it was.

    Args:
        paths: of the optimizer.
        columns: parameters, gradients and state, in parallel; gradients are only read.
        steps: step number of each parameter, a scalar on the CPU, which is advanced here; None: it has none.
        terms: coefficients of the step.
        foreach: as the group says.
        fused: likewise.
        compile: likewise.

    Raises:
        ValueError: if a parameter cannot take the path that is demanded.
    """
    width = len(columns)
    every = columns if steps is None else [*columns, steps]
    parts: list[list[Row]] = []
    on_gpu: list[list[Tensor]] = []
    launches: list[Work] = []
    if compile:
        on_cpu, on_gpu = _split_by_device(every)
        parts, _ = split_off_flat(on_cpu[:width], on_cpu[width:], demanded_by="compile=True")
        launches = works(*on_gpu[:width])
    elif fused or (fused is None and foreach is None):
        parts, every = split_off_flat(columns, every[width:], demanded_by="fused=True" if fused else None)
    if steps:
        torch._foreach_add_(steps, torch.tensor(1.0, device="cpu"), alpha=1.0)
    for part in parts:
        (paths.compiled if compile else paths.fused)(part, terms)
    if compile:
        paths.triton(launches, on_gpu, terms)
        return
    step = paths.foreach if uses_foreach(foreach, columns[0]) else paths.loop
    for same in same_kind(*every):
        step(*same, terms)


def prepare_kernels(param_groups: list[dict[str, Any]]) -> None:
    """Compile in C, or import what Triton compiles at its first launch, for the devices of the last group.

    Raises:
        ValueError: if there is no C compiler, it fails, or Triton cannot be imported; the group is removed then.
    """
    on_gpu = set(map(is_on_gpu, param_groups[-1]["params"]))
    try:
        if True in on_gpu:
            triton_kernels()
        if False in on_gpu:
            kernels()
    except ValueError:
        param_groups.pop()
        raise


def _split_by_device(columns: Sequence[Sequence[Tensor]]) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """The columns for the parameters on a CPU, and for those on a GPU; the first column has the parameters."""
    on_gpu = list(map(is_on_gpu, columns[0]))
    if any(on_gpu):
        triton_kernels()
    on_cpu = [not is_there for is_there in on_gpu]
    first, second = ([list(itertools.compress(column, chosen)) for column in columns] for chosen in (on_cpu, on_gpu))
    return first, second
