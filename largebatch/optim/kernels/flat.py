"""Tensors as flat views, for the fused paths: which tensors have them, and their norms as Python numbers.

On a CPU a norm that is a Python number costs no wait, unlike on an accelerator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from largebatch.optim.state import PLAIN_TYPES

SMALL_NUMEL = 4096
"""Tensors up to this size are batched into one call: for them a call costs as much as the arithmetic."""

_ROW_NUMEL = 1024
PLAIN_DTYPES = (torch.float32, torch.float64)
_TAKES = "float32 and float64 tensors on a CPU"
_TAKE_OTHERS = "Set fused=None, which takes it where it applies"

Row = list[Tensor]
"""The tensors of one parameter: itself, its gradient, its state."""


def split_off_flat(
    columns: Sequence[Sequence[Tensor]], scalars: Sequence[Sequence[Tensor]], *, demanded_by: str | None
) -> tuple[list[list[Row]], list[list[Tensor]]]:
    """Divide the parameters of a group into those that have flat views and the others.

    Plain tensors on a CPU have them, whose parameter, gradient and state are all float32 or all float64 and lie in
    memory in one and the same order, without gaps: contiguous, channels_last, transposed, and so on.

    Args:
        columns: parameters, gradients and state, in parallel.
        scalars: at most one further column, step numbers, which has no layout to match.
        demanded_by: the option that demands flat views of all; None: of those that have them.

    Returns:
        Rows of flat views, each ended by its scalar, float32 and float64 apart, without empty tensors; the columns of
        the rest, scalars last.

    Raises:
        ValueError: if flat views are demanded of a parameter that has none.
    """
    rows: dict[torch.dtype, list[Row]] = {}
    rest: list[list[Tensor]] = [[] for _ in [*columns, *scalars]]
    for row, *ending in zip(zip(*columns, strict=True), *scalars, strict=True):
        flat = flat_views(row)
        if flat is None and demanded_by:
            remedy = "Set compile=False" if demanded_by == "compile=True" else _TAKE_OTHERS
            raise ValueError(refusal(demanded_by, row, remedy))
        if flat is None or not row[0].numel():
            for column, tensor in zip(rest, [*row, *ending], strict=True):
                column.append(tensor)
        else:
            rows.setdefault(flat[0].dtype, []).append(flat + ending)
    return list(rows.values()), rest


def flat_views(row: Sequence[Tensor]) -> Row | None:
    """One-dimensional views with the same element order; None if the path does not apply."""
    param = row[0]
    if type(param) not in PLAIN_TYPES or param.device.type != "cpu" or param.dtype not in PLAIN_DTYPES:
        return None
    if any(type(other) not in PLAIN_TYPES or other.dtype != param.dtype for other in row[1:]):
        return None
    return in_one_order(row)


def in_one_order(row: Sequence[Tensor]) -> Row | None:
    """The tensors as flat views, if they are dense and in the element order of the first; else None."""
    if not all(tensor.is_contiguous() for tensor in row):
        strides = row[0].stride()
        order = sorted(range(row[0].ndim), key=lambda dim: (-strides[dim], dim))
        row = [tensor.permute(order) for tensor in row]
        if not all(tensor.is_contiguous() for tensor in row):
            return None
    return [tensor if tensor.ndim == 1 else tensor.view(-1) for tensor in row]


def refusal(option: str, row: Sequence[Tensor], remedy: str, *, takes: str = _TAKES) -> str:
    """The reason that flat views of a parameter, its gradient and its state are impossible, and the rule."""
    param, grad = row[0], row[1]
    return (
        f"{option} and a parameter of shape {list(param.shape)}, {type(param).__name__} of {param.dtype} on "
        f"{param.device} with strides {param.stride()}, its gradient of {grad.dtype} with strides {grad.stride()}: "
        f"{option} takes plain {takes} that lie in memory without gaps, the gradient and "
        f"the state in the order of the parameter. {remedy}."
    )


def small_then_large(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of small tensors, and the others."""
    return (
        [row for row in rows if row[0].numel() <= SMALL_NUMEL],
        [row for row in rows if row[0].numel() > SMALL_NUMEL],
    )


def norm(flat: Tensor) -> float:
    """L2 norm of a flat tensor on the CPU.

    Norms of rows, then their norm: torch adds the squares of a row one after the other in float32, and a short row
    keeps the error near 1e-7.
    """
    if flat.numel() <= _ROW_NUMEL:
        return float(torch.linalg.vector_norm(flat))
    odd = flat.numel() % _ROW_NUMEL
    rows = (flat[:-odd] if odd else flat).view(-1, _ROW_NUMEL)
    of_rows = float(torch.linalg.vector_norm(torch.linalg.vector_norm(rows, dim=-1)))
    return math.hypot(of_rows, float(torch.linalg.vector_norm(flat[-odd:]))) if odd else of_rows


def small_norms(flats: list[Tensor]) -> list[float]:
    """L2 norm of each of many small tensors."""
    norms: list[float] = torch.stack(torch._foreach_norm(flats)).tolist()
    return norms
