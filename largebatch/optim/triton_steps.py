"""LAMB and LARS in Triton's kernels: two or three launches for all tensors of a group, and no wait for the device."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from largebatch.optim.flat import Row, in_one_order, refusal
from largebatch.optim.forms import LambForm, LarsForm
from largebatch.optim.state import wide_dtype
from largebatch.optim.triton_tables import Tables, tables, to_device

CHUNK_NUMEL = 2048
"""Elements of a program: 8 for each of its threads, two reads of 16 bytes each. With 16 the registers have room for one
program per processor instead of two to four."""

SUMS_NUMEL = 1024
"""Sums of chunks that are added at once."""

GPU_TYPES = ("cuda",)
"""Types of the devices that the kernels are for; ROCm's builds of torch say "cuda" too."""

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_TAKES = "float32, float64, bfloat16 and float16 tensors"
# No fused multiply-adds: each operation is rounded by itself, as in the interpreter that the tests run in.
_LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}


class Kernels(NamedTuple):
    """Modules that need Triton, which only some machines have."""

    shared: ModuleType
    lars: ModuleType
    lamb: ModuleType


def has_triton() -> bool:
    """Whether the kernels can be imported."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def triton_kernels() -> Kernels:
    """The kernels, of which Triton compiles each at its first launch.

    Raises:
        ValueError: if Triton is missing, or cannot be imported.
    """
    names = ("kernels", "lars_kernels", "lamb_kernels")
    try:
        return Kernels(*(importlib.import_module(f"largebatch.optim.triton_{name}") for name in names))
    except ImportError as error:
        raise ValueError(
            f"compile=True and a parameter on a GPU: its kernels are written in Triton, which cannot be imported "
            f"({error}). torch's builds for CUDA bring it along. Run pip install triton, or set compile=False."
        ) from error


def rows_on_gpu(*columns: Sequence[Tensor], scalars: Sequence[Tensor] | None = None) -> list[list[Row]]:
    """Rows of parameter, gradient and state, ended by a scalar if there are any; each device and set of dtypes apart.

    Raises:
        ValueError: if a parameter is not a plain tensor of a dtype that the kernels know, or what belongs to it has
            another dtype than it should, or another order in memory. That is so for empty tensors too, which are left
            out.
    """
    kinds: dict[tuple[object, ...], list[Row]] = {}
    for number, row in enumerate(zip(*columns, strict=True)):
        param, grad, state = row[:3]
        if not _is_plain(row):
            raise ValueError(refusal("compile=True", row, "Set compile=False", takes=_TAKES))
        if param.numel():
            kind = (param.device, param.dtype, grad.dtype, state.dtype)
            kinds.setdefault(kind, []).append([*row] if scalars is None else [*row, scalars[number]])
    return list(kinds.values())


def _is_plain(row: Sequence[Tensor]) -> bool:
    param, grad, *state = row
    dtype = param.dtype
    return (
        type(param) in (Tensor, torch.nn.Parameter)
        and dtype in _DTYPES
        and all(type(other) is Tensor for other in row[1:])
        and all(other.dtype == wide_dtype(param) and other.device == param.device for other in state)
        and grad.dtype in (dtype, state[0].dtype)
        and (all(tensor.is_contiguous() for tensor in row) or in_one_order(row) is not None)
    )


def triton_lars(
    rows: Sequence[Row],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    adapts: bool,
    form: LarsForm,
) -> None:
    """One LARS step on rows of parameter, gradient and velocity, of one device and one set of dtypes.

    Bytes per float32 parameter: 8 for the norms of w and g, then 20 to read w, g, v and to write w, v.
    """
    kernels = triton_kernels().lars
    inner_lr, outer_lr = form.placed(lr)
    work = tables(rows, 3, CHUNK_NUMEL)
    kinds, decays = _kinds(rows), weight_decay != 0
    rates = None
    with _on_device_of(rows):
        if adapts:
            sums = _sums(work)
            is_joint = decays and form.denominator == "joint"
            kernels.lars_norms[(work.num_chunks,)](
                work.table, work.chunks, work.firsts, sums, weight_decay, is_joint, *kinds, CHUNK_NUMEL, **_LAUNCH
            )
            options = form.ratio_options(lr=lr, weight_decay=weight_decay, trust_coefficient=trust_coefficient)
            rates = _rates(work, sums, inner_lr, **options)
        kernels.lars_step[(work.num_chunks,)](
            work.table, work.chunks, work.firsts, rates, inner_lr, momentum, weight_decay, outer_lr, decays,
            form.nesterov, *kinds, CHUNK_NUMEL, **_LAUNCH,
        )  # fmt: skip
    torch.autograd.graph.increment_version([tensor for row in rows for tensor in (row[0], row[2])])


def triton_lamb(
    rows: Sequence[Row],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    adapts: bool,
    form: LambForm,
    grad_divisor: Tensor | None,
) -> None:
    """One LAMB step on rows of parameter, gradient and two moments and the step number, which it only reads.

    Bytes per float32 parameter: 24 to read w, g, m, v and to write m, v; then 16 to read w, m, v and to write w. What
    does not adapt takes 28 in one pass, and a largest norm of the gradients 4 before.
    """
    kernels = triton_kernels().lamb
    work = tables(rows, 4, CHUNK_NUMEL)
    kinds = _kinds(rows)
    place = "nowhere" if weight_decay == 0 else form.decay_placement
    decay = lr * weight_decay if place == "outside" else weight_decay
    share = 1 - beta1 if form.grad_averaging else 1.0
    scales, (scale, scaled_eps) = _scales(rows, beta1, beta2, eps, form)
    numbers = (scales, scale, scaled_eps)
    with _on_device_of(rows):
        sums = _sums(work) if adapts else None
        kernels.lamb_moments[(work.num_chunks,)](
            work.table, work.chunks, work.firsts, sums, grad_divisor, *numbers, beta1, share, beta2, 1 - beta2, decay,
            lr, place, *kinds, CHUNK_NUMEL, **_LAUNCH,
        )  # fmt: skip
        if sums is not None:
            rates = _rates(work, sums, lr, **form.ratio_options)
            kernels.lamb_step[(work.num_chunks,)](
                work.table, work.chunks, work.firsts, rates, *numbers, decay, place, kinds[0], kinds[2], CHUNK_NUMEL,
                **_LAUNCH,
            )  # fmt: skip
    # Kernels write past autograd, which has to know that what it saved of them for a backward pass is no more.
    torch.autograd.graph.increment_version([tensor for row in rows for tensor in (row[0], row[2], row[3])])


def _on_device_of(rows: Sequence[Row]) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device."""
    device = rows[0][0].device
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _kinds(rows: Sequence[Row]) -> tuple[Any, Any, Any]:
    """Types of parameter, gradient and state, in Triton's language."""
    language = triton_kernels().shared.tl
    param, grad, state = (getattr(language, _DTYPES[tensor.dtype]) for tensor in rows[0][:3])
    return param, grad, state


def _sums(work: Tables) -> Tensor:
    return torch.empty((work.num_chunks, 2), dtype=torch.float64, device=work.table.device)


def _rates(
    work: Tables,
    sums: Tensor,
    lr: float,
    *,
    coefficient: float = 1.0,
    weight_decay: float = 0.0,
    eps: float = 0.0,
    norm_bounds: Sequence[float] | None = None,
    at_most: float | None = None,
) -> Tensor:
    """Rates of all tensors, lr times the ratio, with the options of `trust_ratio`."""
    rates = torch.empty(work.num_tensors, dtype=torch.float64, device=sums.device)
    bounds = (0.0, math.inf) if norm_bounds is None else norm_bounds
    numbers = (lr, coefficient, weight_decay, eps, *bounds, math.inf if at_most is None else at_most)
    kernel = triton_kernels().shared.trust_rates
    kernel[(work.num_tensors,)](sums, work.firsts, rates, *map(float, numbers), SUMS_NUMEL, **_LAUNCH)
    return rates


def _scales(
    rows: Sequence[Row], beta1: float, beta2: float, eps: float, form: LambForm
) -> tuple[Tensor | None, tuple[float, float]]:
    """(scale, eps root2) of all, or a table of them if step numbers differ."""
    if not form.bias_correction:
        return None, (1.0, eps)
    state_steps = torch.stack([row[4] for row in rows]).tolist()
    of_step = {}
    for steps in set(state_steps):
        root2 = math.sqrt(1 - beta2**steps)
        of_step[steps] = (root2 / (1 - beta1**steps), eps * root2)
    if len(of_step) == 1:
        return None, of_step[state_steps[0]]
    return to_device(np.array([of_step[steps] for steps in state_steps]), rows[0][0].device), (1.0, eps)
