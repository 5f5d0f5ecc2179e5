"""Whether the compiled kernels work on a device of this process: tried once, against the foreach path."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from largebatch.optim.forms import LambForm, LarsForm
from largebatch.optim.kernels.compiled import compiled_lamb, compiled_lars
from largebatch.optim.kernels.foreach import foreach_lamb, foreach_lars
from largebatch.optim.kernels.triton_steps import triton_lamb, triton_lars
from largebatch.optim.kernels.triton_tables import works

_NUMELS = (5000, 7)
_TOLERANCE = 1e-5  # both paths round about ten times, by 6e-8 each
_LARS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.1, "adapts": True}
_LAMB: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01, "adapts": True}
_STATE = {"LARS": ["velocity"], "LAMB": ["first moment", "second moment"]}
_PATHS: dict[str, tuple[Any, Any, Any]] = {
    "LARS": (foreach_lars, compiled_lars, triton_lars),
    "LAMB": (foreach_lamb, compiled_lamb, triton_lamb),
}


def reason_against(device: torch.device) -> str | None:
    """What is missing for the compiled kernels on this device; None: a step of LARS and one of LAMB were right.

    The first call compiles in C, in a second, or in Triton, in some seconds; both are cached on disk.
    """
    if device.type == "cuda" and torch.version.hip is not None:
        return "the kernels were never tried on ROCm"
    if device.type not in ("cpu", "cuda"):
        return f"there are no kernels for {device.type}"
    return _tried(device)


@functools.cache
def _tried(device: torch.device) -> str | None:
    try:
        with torch.device("cpu"), torch.no_grad():
            error = max(_error("LARS", device), _error("LAMB", device))
    except Exception as failure:  # of a compiler, a driver or Triton, each with errors of its own
        return (str(failure) or type(failure).__name__).splitlines()[0]
    return (
        None if error <= _TOLERANCE else f"their step differs from the plain one by {error:.1e} of the largest number"
    )


def _error(name: str, device: torch.device) -> float:
    """Largest difference of weights and state after a step on two paths, over the largest number."""
    compiled, plain = (_step(name, device, is_compiled=is_compiled) for is_compiled in (True, False))
    pairs = zip(compiled, plain, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def _step(name: str, device: torch.device, *, is_compiled: bool) -> list[Tensor]:
    """Weights and state after a step on two tensors, the second one shorter than a vector."""
    columns = [[torch.linspace(-1, at + 1, numel).to(device) for numel in _NUMELS] for at in range(2)]
    columns += [[torch.full((numel,), 0.1, device=device) for numel in _NUMELS] for _ in _STATE[name]]
    everything = [*columns, [torch.tensor(3.0) for _ in _NUMELS]] if name == "LAMB" else columns
    terms: Any = LambForm().terms(_LAMB) if name == "LAMB" else LarsForm().terms(_LARS)
    foreach, in_c, in_triton = _PATHS[name]
    if not is_compiled:
        foreach(*everything, terms)
    elif device.type == "cuda":
        in_triton(works(*columns), everything, terms)
    else:
        in_c([list(row) for row in zip(*everything, strict=True)], terms)
    return [tensor for at, column in enumerate(columns) if at != 1 for tensor in column]  # 1 are the gradients
