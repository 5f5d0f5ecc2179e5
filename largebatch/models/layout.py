"""Memory layout and compilation of a model, in place: objects, names and files of its weights stay as they are."""

from __future__ import annotations

from torch import channels_last, nn

from largebatch.models.checkpointing import BLOCKS, matching_modules


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
            weight.data = weight.data.contiguous(memory_format=channels_last)


def compile_blocks(model: nn.Module, pattern: str = BLOCKS, *, dynamic: bool | None = None) -> list[str]:
    """Compile each of the modules whose names match `pattern` by itself.

    Blocks of one class share their compiled code, so that compilation takes as long as that of one block, however deep
    the model is; DistributedDataParallel splits no graph at its buckets.

    Args:
        model: changed in place.
        pattern: as for `checkpoint_activations`.
        dynamic: False: compile each size of a micro-batch by itself; None: torch generalises at the second size.

    Returns:
        Names of the modules, in the order of the tree.

    Raises:
        ValueError: see `matching_modules`.
    """
    matches = matching_modules(model, pattern)
    for module in matches.values():
        module.compile(dynamic=dynamic)
    return list(matches)
