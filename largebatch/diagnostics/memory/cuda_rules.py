"""The choices that torch makes for tensors on a GPU, applied to fake tensors on the CPU.

A build of torch for CPUs cannot differentiate fake tensors on a GPU. So these stay on the CPU, and where torch would
take other operations there, these are taken: autocast's list, attention, dropout.
Recurrent layers are taken step by step.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _ExcludeDispatchKeyGuard
from torch.utils._pytree import tree_leaves, tree_map

# Operations with a rule of CUDA's autocast and none of the CPU's take float32, but for these.
# Source: https://docs.pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior
NARROW = {"_thnn_fused_gru_cell", "_thnn_fused_lstm_cell", "addmv", "addr", "chain_matmul", "einsum", "gru_cell"}
NARROW |= {"linalg_multi_dot", "lstm_cell", "mv", "rnn_relu_cell", "rnn_tanh_cell"}
WIDEST = {"addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "index_put", "scatter_add", "tensordot", "vdot"}
# Never met on a CPU, or only inside an operation that has its rule.
INNER = {"_convolution", "convolution", "cudnn_convolution", "cudnn_convolution_transpose"}
INNER |= {"_scaled_dot_product_flash_attention"}

_AUTOCAST = DispatchKeySet(DispatchKey.AutocastCPU)
_LARGEST_FLASH_HEAD = 256
_aten: Any = torch.ops.aten
_flash: Callable[..., tuple[Tensor, ...]] = _aten._scaled_dot_product_flash_attention
_efficient: Callable[..., tuple[Tensor, ...]] = _aten._scaled_dot_product_efficient_attention
_math: Callable[..., tuple[Tensor, ...]] = _aten._scaled_dot_product_attention_math


@contextlib.contextmanager
def cuda_rules() -> Iterator[None]:
    """Inside, tensors on the CPU are computed by the operations that a GPU would take, as far as memory shows it."""
    with warnings.catch_warnings(), contextlib.ExitStack() as libraries:
        warnings.filterwarnings("ignore", message=".*Overriding a previously registered kernel.*")
        warnings.filterwarnings("ignore", message=".*oneDNN.*")
        libraries.enter_context(torch.backends.mkldnn.flags(enabled=False))  # its LSTM keeps nothing of fake tensors
        library = torch.library.Library("aten", "IMPL")
        libraries.callback(library._destroy)
        for name in autocast_of_cuda_alone():
            library.impl(name.removeprefix("aten::"), _autocast_kernel(name), "AutocastCPU")
        library.impl("scaled_dot_product_attention", _attention, "AutogradCPU")
        library.impl("dropout", _dropout, "AutogradCPU")
        yield


def autocast_of_cuda_alone() -> list[str]:
    """The operations that CUDA's autocast has a rule for, and the CPU's has none; as "aten::name.overload"."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return [
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
        and has_kernel(name, "AutocastCUDA")
        and not has_kernel(name, "AutocastCPU")
        and _bare(name) not in INNER
    ]


def _bare(name: str) -> str:
    return name.removeprefix("aten::").partition(".")[0]


def _operation(name: str) -> Any:
    bare, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(torch.ops.aten, bare), overload or "default")


def _autocast_kernel(name: str) -> Callable[..., Any]:
    operation, bare = _operation(name), _bare(name)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with _ExcludeDispatchKeyGuard(_AUTOCAST):
            dtype = _dtype_for(bare, tree_leaves((args, kwargs)))
            args, kwargs = tree_map(lambda one: _cast(one, dtype), (args, kwargs))
            return operation(*args, **kwargs)

    return kernel


def _dtype_for(bare: str, leaves: list[Any]) -> torch.dtype:
    if bare in NARROW:
        return torch.get_autocast_dtype("cpu")
    if bare in WIDEST and not any(isinstance(one, Tensor) and one.dtype == torch.float32 for one in leaves):
        return torch.get_autocast_dtype("cpu")
    return torch.float32


def _cast(value: Any, dtype: torch.dtype) -> Any:
    is_cast = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if is_cast else value


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Flash attention where it applies, then the memory-efficient kernel; neither keeps the T x T weights."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (part.repeat_interleave(groups, dim=-3) for part in (key, value))
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    fits = query.dim() == 4 and query.shape[-1] == value.shape[-1] and query.dtype != torch.float64
    if fits and is_half and attn_mask is None and query.shape[-1] <= _LARGEST_FLASH_HEAD:
        head = query.shape[-1]
        scale = head**-0.5 if scale is None else scale
        padded = [F.pad(part, (0, -head % 8)) if head % 8 else part for part in (query, key, value)]
        result = _flash(*padded, dropout_p, is_causal, scale=scale)[0]
        return result[..., :head] if head % 8 else result
    if fits:
        bias = None if attn_mask is None else _bias(attn_mask, query).expand(*query.shape[:-1], key.shape[-2])
        needs_sums = any(part.requires_grad for part in (query, key, value))
        return _efficient(query, key, value, bias, needs_sums, dropout_p, is_causal, scale=scale)[0]
    return _math(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)[0]


def _bias(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask.logical_not(), -torch.inf)


def _dropout(inputs: Tensor, p: float, train: bool) -> Tensor:
    """One fused operation, which keeps one byte of mask per number."""
    if not train or p == 0:
        return inputs
    kept: Tensor = _aten.native_dropout(inputs, p, True)[0]
    return kept
