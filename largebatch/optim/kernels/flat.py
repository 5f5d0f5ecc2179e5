"""Tensors as flat views, for the fused paths: which tensors have them, and their norms as Python numbers.

On a CPU a norm that is a Python number costs no wait, unlike on an accelerator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from largebatch.optim.checks import check_paths
from largebatch.optim.forms import LambForm, LarsForm

SMALL_NUMEL = 4096
"""Tensors up to this size are handled many per call: a call costs as much as the arithmetic on them."""

_ROW_NUMEL = 1024
PLAIN_DTYPES = (torch.float32, torch.float64)
_TAKES = "float32 and float64 tensors on a CPU"

Row = list[Tensor]
"""What belongs to one parameter: itself, its gradient, its state."""


def require_fused_form(fused: bool | None, form: LarsForm | LambForm) -> bool | None:
    """`fused` for this form: False where None would have decided.

    Raises:
        ValueError: if it is True and the fused path does not have the form.
    """
    if form.is_fused:
        return fused
    if fused:
        raise ValueError(
            f"fused=True with {form}: the fused path does not have this form. Set fused=None, which takes another path."
        )
    return False


def split_off_fused(
    foreach: bool | None, fused: bool | None, *columns: Sequence[Tensor], scalars: Sequence[Tensor] | None = None
) -> tuple[list[Row], list[list[Tensor]]]:
    """Divide the parameters of a group between the fused path and the others.

    The fused path takes plain tensors on a CPU whose parameter, gradient and state are all float32 or all float64 and
    lie in memory in one and the same order, without gaps: contiguous, channels_last, transposed, and so on.

    Args:
        foreach: as the user set it; True and False are paths of their own.
        fused: True demands the fused path for all, None takes it where it applies, False leaves it out.
        columns: parameters, gradients and state, in parallel.
        scalars: a further column, such as step counters, which has no layout to match.

    Returns:
        Rows of flat views, empty tensors left out, each ended by its scalar; the columns of the rest, scalars last.

    Raises:
        ValueError: if `fused` is True and a parameter cannot take the path, or `foreach` is True as well.
    """
    check_paths(foreach, fused)
    every: list[Sequence[Tensor]] = [*columns, *([scalars] if scalars is not None else [])]
    if fused is False or (fused is None and foreach is not None):
        return [], [list(column) for column in every]
    rows: list[Row] = []
    rest: list[list[Tensor]] = [[] for _ in every]
    for number, row in enumerate(zip(*columns, strict=True)):
        flat = flat_views(row)
        if flat is None and fused:
            raise ValueError(refusal("fused=True", row, "Set fused=None, which takes it where it applies"))
        ending = [] if scalars is None else [scalars[number]]
        if flat is None or not row[0].numel():
            for column, tensor in zip(rest, [*row, *ending], strict=True):
                column.append(tensor)
        else:
            rows.append(flat + ending)
    return rows, rest


def flat_views(row: Sequence[Tensor]) -> Row | None:
    """One-dimensional views in which an element has one and the same place; None where the path does not apply."""
    param = row[0]
    if type(param) not in (Tensor, torch.nn.Parameter) or param.device.type != "cpu" or param.dtype not in PLAIN_DTYPES:
        return None
    if any(type(other) is not Tensor or other.dtype != param.dtype for other in row[1:]):
        return None
    return in_one_order(row)


def in_one_order(row: Sequence[Tensor]) -> Row | None:
    """The tensors as flat views, if they lie in memory without gaps and in the order of the first; else None."""
    if not all(tensor.is_contiguous() for tensor in row):
        strides = row[0].stride()
        order = sorted(range(row[0].ndim), key=lambda dim: (-strides[dim], dim))
        row = [tensor.permute(order) for tensor in row]
        if not all(tensor.is_contiguous() for tensor in row):
            return None
    return [tensor if tensor.ndim == 1 else tensor.view(-1) for tensor in row]


def refusal(option: str, row: Sequence[Tensor], remedy: str, *, takes: str = _TAKES) -> str:
    """Why a path that needs flat views cannot have this parameter, its gradient and its state; what it does take."""
    param, grad = row[0], row[1]
    return (
        f"{option} and a parameter of shape {list(param.shape)}, {type(param).__name__} of {param.dtype} on "
        f"{param.device} with strides {param.stride()}, its gradient of {grad.dtype} with strides {grad.stride()}: "
        f"{option} takes plain {takes} that lie in memory without gaps, the gradient and "
        f"the state in the order of the parameter. {remedy}."
    )


def rows_of_one_dtype(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows, those of float32 and those of float64 apart."""
    parts = [[row for row in rows if row[0].dtype == dtype] for dtype in PLAIN_DTYPES]
    return [part for part in parts if part]


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
