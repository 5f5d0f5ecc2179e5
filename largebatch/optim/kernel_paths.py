"""What compile=True chooses: kernels in C for tensors on a CPU, kernels in Triton for those on a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from largebatch.optim.compiled import rows_in_place
from largebatch.optim.compiler import kernels
from largebatch.optim.flat import Row
from largebatch.optim.triton_steps import GPU_TYPES, rows_on_gpu, triton_kernels


def prepare_kernels(param_groups: list[dict[str, Any]]) -> None:
    """Compile in C, or import what Triton compiles at its first launch, for the devices of the last group.

    Raises:
        ValueError: if there is no C compiler, it fails, or Triton cannot be imported; the group is removed then.
    """
    on_gpu = {_is_on_gpu(param) for param in param_groups[-1]["params"]}
    try:
        if True in on_gpu:
            triton_kernels()
        if False in on_gpu:
            kernels()
    except ValueError:
        param_groups.pop()
        raise


def rows_of_kernels(
    *columns: Sequence[Tensor], scalars: Sequence[Tensor] | None = None
) -> tuple[list[list[Row]], list[list[Row]]]:
    """Rows for the kernels in C, and for those in Triton; see `rows_in_place` and `rows_on_gpu`.

    Raises:
        ValueError: if the kernels cannot take a parameter, or Triton cannot be imported.
    """
    on_gpu = [_is_on_gpu(param) for param in columns[0]]
    if not any(on_gpu):
        return rows_in_place(*columns, scalars=scalars), []
    triton_kernels()
    if all(on_gpu):
        return [], rows_on_gpu(*columns, scalars=scalars)
    on_cpu = [not is_on_gpu for is_on_gpu in on_gpu]
    parts = []
    for rows_of, chosen in ((rows_in_place, on_cpu), (rows_on_gpu, on_gpu)):
        picked = [list(itertools.compress(column, chosen)) for column in columns]
        parts.append(rows_of(*picked, scalars=None if scalars is None else list(itertools.compress(scalars, chosen))))
    return parts[0], parts[1]


def _is_on_gpu(param: Tensor) -> bool:
    return param.device.type in GPU_TYPES
