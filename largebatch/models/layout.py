"""Memory layout and compilation of a model, in place: objects, names and files of its weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from types import CodeType, FunctionType
from typing import Any, cast

import torch
from torch import nn


def convolutions_2d(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that convolve over two dimensions."""
    return [one for one in model.modules() if isinstance(one, (nn.Conv2d, nn.ConvTranspose2d))]


def keep_channels_last(model: nn.Module) -> None:
    """Store the weights of two-dimensional convolutions with the channels of a pixel side by side.

    A convolution takes the layout of its weight: the first one converts its input, and the activations after it stay in
    the layout. Shapes and values do not change, so a checkpoint does not show it; last digits of results may, because
    other kernels compute them.
    """
    for module in convolutions_2d(model):
        weight = module._parameters.get("weight")  # a parametrised weight is computed anew in each pass
        if weight is not None:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def compile_modules(modules: Iterable[nn.Module], *, dynamic: bool | None = None) -> None:
    """Compile each of these modules by itself, in place.

    Blocks of one structure share their compiled code, so that compilation takes as long as that of one block, however
    deep the model is; DistributedDataParallel splits no graph at its buckets.

    `nn.Module.compile` does nothing, silently, for modules whose `forward` is torch's own, such as `nn.Sequential`.

    Args:
        modules: a model, or its blocks; none inside another.
        dynamic: False: compile each size of a micro-batch by itself; None: torch generalises at the second size.
    """
    codes: dict[Any, CodeType] = {}
    for module in modules:
        called = _frame_around(module)
        # Torch counts compilations by code object, up to a limit beyond which it computes without: one per structure.
        called.__code__ = codes.setdefault(_structure(module), called.__code__.replace())
        module._compiled_call_impl = torch.compile(called, dynamic=dynamic)


def _frame_around(module: nn.Module) -> FunctionType:
    """A frame of ours around torch's own call: torch compiles no frame of its files, but those that they call."""
    call = module._call_impl

    def called(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    return cast(FunctionType, called)


def _structure(module: nn.Module) -> Any:
    types = tuple((name, type(one)) for name, one in module.named_modules())
    shapes = tuple((name, one.shape, one.dtype, one.requires_grad) for name, one in module.named_parameters())
    return types, shapes
