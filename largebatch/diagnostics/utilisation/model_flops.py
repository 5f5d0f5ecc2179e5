"""Floating-point operations that a model needs for a sample: counted, not estimated."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from largebatch.distributed.generators import preserved_generators
from largebatch.distributed.runtime import Inputs
from largebatch.gradient.accumulation import forward
from largebatch.models.checkpointing import without_checkpointing
from largebatch.models.modes import train_mode

_SAMPLES = 2  # batch norm over one sample may fail


class NotCountedError(ValueError):
    """The operations of a model cannot be counted."""


def model_flops(model: nn.Module, sample: Inputs) -> float:
    """Operations of the forward and the backward pass over one sample, a multiplication and an addition being two.

    They are counted by torch's `FlopCounterMode` on a copy without numbers: matrix products, convolutions and
    attention. As in the definition of model FLOPs utilisation, what an implementation computes again does not count:
    neither activation checkpointing nor the scores that flash attention recomputes. Causal attention counts in full, as
    there. For a transformer of N weights in matrices, L layers, width D and context T it is T (6 N + 12 L D T).
    Gradients of frozen weights, and of the inputs, are left out.

    Source: Chowdhery et al. 2022, "PaLM: Scaling language modeling with pathways", appendix B.

    Args:
        model: stays as it is.
        sample: inputs of one sample [1, ...] as the model takes them, or a dict of such.

    Raises:
        NotCountedError: if it cannot run without numbers, or has layers whose operations torch does not count.

    Two passes over the first layer, whose inputs need no gradient, and three over the second:

    >>> model_flops(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7)), torch.zeros(1, 3)), 2 * (2 * 3 * 5 + 3 * 5 * 7)
    (270.0, 270)
    """
    if recurrent := [name for name, one in model.named_modules() if isinstance(one, nn.RNNBase)]:
        raise NotCountedError(f"torch does not count the operations of recurrent layers, such as {recurrent[0]!r}")
    from torch.utils.flop_counter import FlopCounterMode  # its import takes a quarter of a second

    counter = FlopCounterMode(display=False)
    own = (one.fake_mode for one in model.parameters() if isinstance(one, FakeTensor))
    fake = next(own, None) or FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with preserved_generators(), warnings.catch_warnings(), FakeCopyMode(fake):
            warnings.simplefilter("ignore")  # the run itself repeats them
            copied = copy.deepcopy(model)
        without_checkpointing(copied)
        train_mode(copied)
        # Attention as plain products: fused kernels count the scores that they recompute.
        with preserved_generators(), warnings.catch_warnings(), fake, sdpa_kernel(SDPBackend.MATH), counter:
            warnings.simplefilter("ignore")
            _passes(copied, pytree.tree_map(lambda part: _without_numbers(part, copied), sample))
    except Exception as error:
        raise NotCountedError(
            f"{type(model).__name__} does not run without numbers ({type(error).__name__})"
        ) from error
    if not counter.get_total_flops():
        raise NotCountedError(f"torch counts no operation of {type(model).__name__}")
    return counter.get_total_flops() / _SAMPLES


def _without_numbers(part: Tensor, model: nn.Module) -> Tensor:
    parameter = next(model.parameters(), part)
    dtype = parameter.dtype if part.is_floating_point() else part.dtype
    return torch.empty((_SAMPLES, *part.shape[1:]), dtype=dtype, device=parameter.device)


def _passes(model: nn.Module, inputs: Any) -> None:
    outputs: Any = forward(model, inputs)
    parts = [one for one in pytree.tree_leaves(outputs) if isinstance(one, Tensor) and one.requires_grad]
    sum((part.sum() for part in parts), torch.zeros((), device=parts[0].device)).backward()
