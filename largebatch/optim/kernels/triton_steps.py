"""LAMB and LARS in Triton's kernels: two or three launches for all tensors of a group, and no wait for the device."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from largebatch.optim.forms import LambTerms, LarsTerms
from largebatch.optim.kernels.triton_tables import DTYPES, Work, to_device
from largebatch.optim.trust_ratio import TrustRatio

SUMS_NUMEL = 1024
"""Chunk sums that are added at once."""

# No fused multiply-adds: each operation is rounded by itself, as in the interpreter that the tests run in.
_LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}


def has_triton() -> bool:
    """Whether the kernels can be imported."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def triton_kernels() -> ModuleType:
    """The module of the kernels, each of which Triton compiles at its first launch.

    Raises:
        ValueError: if Triton is missing, or cannot be imported.
    """
    try:
        return importlib.import_module("largebatch.optim.kernels.triton_kernels")
    except ImportError as error:
        raise ValueError(
            f"The kernels for a GPU are written in Triton, which cannot be imported ({error}). torch's builds "
            "for CUDA bring it along. Run pip install triton, or set compile=False."
        ) from error


def triton_lars(works: Sequence[Work], columns: Sequence[Sequence[Tensor]], terms: LarsTerms) -> None:
    """One LARS step on `works`, which are those of these columns: parameters, gradients, velocities.

    Bytes per float32 parameter: 8 for the norms of w and g, then 20 to read w, g, v and to write w, v.
    """
    for work in works:
        kinds, rates = _kinds(work), None
        if terms.ratio is not None:
            sums = _sums(work)
            _launch("lars_norms", work, sums, terms.decay, terms.is_joint, *kinds)
            rates = _rates(work, sums, terms.inner_lr, terms.ratio)
        numbers = (terms.inner_lr, terms.momentum, terms.decay, terms.outer_lr)
        _launch("lars_step", work, rates, *numbers, terms.decay != 0, terms.looks_ahead, *kinds)
    _mark_changed(columns)


def triton_lamb(works: Sequence[Work], columns: Sequence[Sequence[Tensor]], terms: LambTerms) -> None:
    """One LAMB step on `works`, which are those of these columns: parameters, gradients, moments and step numbers.

    Bytes per float32 parameter: 24 to read w, g, m, v and to write m, v; then 16 to read w, m, v and to write w. What
    does not adapt takes 28 in one pass, and a largest norm of the gradients 4 before.
    """
    betas = (terms.beta1, terms.grad_share, terms.beta2, 1 - terms.beta2)
    for work in works:
        kinds = param_kind, _, state_kind = _kinds(work)
        divisor = terms.divisor(work.device, work.dtypes[2])
        scales = _scales(work, [columns[4][member].item() for member in work.members], terms)
        sums = None if terms.ratio is None else _sums(work)
        numbers = (*scales, *betas, terms.decay, terms.lr)
        _launch("lamb_moments", work, sums, divisor, *numbers, terms.place, *kinds)
        if terms.ratio is not None:
            rates = _rates(work, sums, terms.lr, terms.ratio)
            _launch("lamb_step", work, rates, *scales, terms.decay, terms.place, param_kind, state_kind)
    _mark_changed(columns)


def _launch(name: str, work: Work, *arguments: Any) -> None:
    """A program for every chunk, on the device of the work: Triton launches on the current one."""
    with torch.cuda.device(work.device) if work.device.type == "cuda" else contextlib.nullcontext():
        kernel = getattr(triton_kernels(), name)
        kernel[(work.num_chunks,)](*work.tables, *arguments, work.chunk_numel, **_LAUNCH)


def _mark_changed(columns: Sequence[Sequence[Tensor]]) -> None:
    """Tell autograd that kernels have changed tensors that it may have saved for a backward pass."""
    torch.autograd.graph.increment_version(columns[0])


def _kinds(work: Work) -> tuple[Any, Any, Any]:
    """Types of parameter, gradient and state, in Triton's language."""
    param, grad, state = (getattr(triton_kernels().tl, DTYPES[dtype]) for dtype in work.dtypes)
    return param, grad, state


def _sums(work: Work) -> Tensor:
    return torch.empty((work.num_chunks, 2), dtype=torch.float64, device=work.device)


def _rates(work: Work, sums: Tensor | None, lr: float, ratio: TrustRatio) -> Tensor:
    """Rates of all tensors: lr times the ratio."""
    rates = torch.empty(work.num_tensors, dtype=torch.float64, device=work.device)
    bounds = (0.0, math.inf) if ratio.norm_bounds is None else ratio.norm_bounds
    at_most = math.inf if ratio.at_most is None else ratio.at_most
    numbers = (lr, ratio.coefficient, ratio.weight_decay, ratio.eps, *bounds, at_most)
    with torch.cuda.device(work.device) if work.device.type == "cuda" else contextlib.nullcontext():
        kernel = triton_kernels().trust_rates
        kernel[(work.num_tensors,)](sums, work.tables[2], rates, *map(float, numbers), SUMS_NUMEL, **_LAUNCH)
    return rates


def _scales(work: Work, steps: Sequence[float], terms: LambTerms) -> tuple[Tensor | None, float, float]:
    """A table of scale and eps if step numbers differ, and both as numbers if they do not."""
    of_step = {step: terms.scale_and_eps(step) for step in set(steps)}
    if len(set(of_step.values())) == 1:
        return None, *of_step[steps[0]]
    return to_device(np.array([of_step[step] for step in steps]), work.device), 1.0, terms.eps
