"""LAMB and LARS in Triton's kernels: two or three launches for all tensors of a group, and no wait for the device."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from largebatch.optim.forms import LambForm, LarsForm
from largebatch.optim.kernels.triton_tables import DTYPES, Work, to_device

SUMS_NUMEL = 1024
"""Sums of chunks that are added at once."""

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
        return Kernels(*(importlib.import_module(f"largebatch.optim.kernels.triton_{name}") for name in names))
    except ImportError as error:
        raise ValueError(
            f"compile=True and a parameter on a GPU: its kernels are written in Triton, which cannot be imported "
            f"({error}). torch's builds for CUDA bring it along. Run pip install triton, or set compile=False."
        ) from error


def triton_lars(
    works: Sequence[Work],
    params: Sequence[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    adapts: bool,
    form: LarsForm,
) -> None:
    """One LARS step on `works`, which are those of these parameters, their gradients and velocities.

    Bytes per float32 parameter: 8 for the norms of w and g, then 20 to read w, g, v and to write w, v.
    """
    inner_lr, outer_lr = form.placed(lr)
    decays = weight_decay != 0
    for work in works:
        kernels, tables, kinds, rates = triton_kernels().lars, work.tables, _kinds(work), None
        with _on_device_of(work):
            if adapts:
                sums = _sums(work)
                is_joint = decays and form.denominator == "joint"
                kernels.lars_norms[(work.num_chunks,)](
                    *tables, sums, weight_decay, is_joint, *kinds, work.chunk_numel, **_LAUNCH
                )
                options = form.ratio_options(lr=lr, weight_decay=weight_decay, trust_coefficient=trust_coefficient)
                rates = _rates(work, sums, inner_lr, **options)
            numbers = (inner_lr, momentum, weight_decay, outer_lr)
            kernels.lars_step[(work.num_chunks,)](
                *tables, rates, *numbers, decays, form.nesterov, *kinds, work.chunk_numel, **_LAUNCH
            )
    _tell_autograd(params)


def triton_lamb(
    works: Sequence[Work],
    params: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    adapts: bool,
    form: LambForm,
    divisor_of: Callable[[torch.device, torch.dtype], Tensor | None],
) -> None:
    """One LAMB step on `works`, which are those of these parameters, their gradients and moments.

    The step numbers have been advanced. `divisor_of` tells what gradients are divided by, on a device in a dtype.

    Bytes per float32 parameter: 24 to read w, g, m, v and to write m, v; then 16 to read w, m, v and to write w. What
    does not adapt takes 28 in one pass, and a largest norm of the gradients 4 before.
    """
    place = "nowhere" if weight_decay == 0 else form.decay_placement
    decay = lr * weight_decay if place == "outside" else weight_decay
    betas = (beta1, 1 - beta1 if form.grad_averaging else 1.0, beta2, 1 - beta2)
    for work in works:
        kernels, tables, kinds = triton_kernels().lamb, work.tables, _kinds(work)
        divisor = divisor_of(work.device, work.dtypes[2])
        scales = _scales(work, [state_steps[member] for member in work.members], beta1, beta2, eps, form)
        with _on_device_of(work):
            sums = _sums(work) if adapts else None
            kernels.lamb_moments[(work.num_chunks,)](
                *tables, sums, divisor, *scales, *betas, decay, lr, place, *kinds, work.chunk_numel, **_LAUNCH
            )
            if sums is not None:
                rates = _rates(work, sums, lr, **form.ratio_options)
                kernels.lamb_step[(work.num_chunks,)](
                    *tables, rates, *scales, decay, place, kinds[0], kinds[2], work.chunk_numel, **_LAUNCH
                )
    _tell_autograd(params)


def _tell_autograd(params: Sequence[Tensor]) -> None:
    """Kernels write past autograd, which has to know that weights it saved for a backward pass are no more."""
    torch.autograd.graph.increment_version(params)


def _on_device_of(work: Work) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(work.device) if work.device.type == "cuda" else contextlib.nullcontext()


def _kinds(work: Work) -> tuple[Any, Any, Any]:
    """Types of parameter, gradient and state, in Triton's language."""
    language = triton_kernels().shared.tl
    param, grad, state = (getattr(language, DTYPES[dtype]) for dtype in work.dtypes)
    return param, grad, state


def _sums(work: Work) -> Tensor:
    return torch.empty((work.num_chunks, 2), dtype=torch.float64, device=work.device)


def _rates(
    work: Work,
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
    kernel[(work.num_tensors,)](sums, work.tables[2], rates, *map(float, numbers), SUMS_NUMEL, **_LAUNCH)
    return rates


def _scales(
    work: Work, state_steps: Sequence[Tensor], beta1: float, beta2: float, eps: float, form: LambForm
) -> tuple[Tensor | None, float, float]:
    """A table of scale and eps root2 if step numbers differ, and both as numbers if they do not."""
    if not form.bias_correction:
        return None, 1.0, eps
    numbers = [state_step.item() for state_step in state_steps]
    of_step = {}
    for steps in set(numbers):
        root2 = math.sqrt(1 - beta2**steps)
        of_step[steps] = (root2 / (1 - beta1**steps), eps * root2)
    if len(of_step) == 1:
        return None, *of_step[numbers[0]]
    return to_device(np.array([of_step[steps] for steps in numbers]), work.device), 1.0, eps
