"""What compile=True chooses: kernels in C for tensors on a CPU, kernels in Triton for those on a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor

from largebatch.optim.kernels.compiler import kernels
from largebatch.optim.kernels.triton_steps import triton_kernels

is_on_gpu: Callable[[Tensor], bool] = attrgetter("is_cuda")
"""Whether a tensor is on a GPU that Triton's kernels are for; ROCm's builds of torch say so too."""


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


def split_by_device(*columns: Sequence[Tensor]) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """The columns for the parameters on a CPU, and for those on a GPU; the first column has the parameters.

    Raises:
        ValueError: if there are some on a GPU and Triton cannot be imported.
    """
    on_gpu = list(map(is_on_gpu, columns[0]))
    if any(on_gpu):
        triton_kernels()
    on_cpu = [not is_there for is_there in on_gpu]
    first, second = ([list(itertools.compress(column, chosen)) for column in columns] for chosen in (on_cpu, on_gpu))
    return first, second
