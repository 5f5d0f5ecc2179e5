"""Slices through a loss along directions scaled like the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Value = Callable[[Tensor], float]


def filter_normalized(direction: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """The direction with every filter scaled to the norm of the same filter of the weights.

    A filter holds the weights of one output: a row of a linear layer, the kernels of one channel of a convolution.
    Tensors of one dimension (biases, scales and shifts of norms) do not move.

    Args:
        direction: a tensor per parameter, usually Gaussian.
        weights: the parameters, of the same shapes.

    Source: Li et al. 2018 (1712.09913), section 4; fixed biases and norms as in its code.

    >>> import torch
    >>> filter_normalized([torch.tensor([[3.0, 4.0]]), torch.ones(2)], [torch.tensor([[0.0, 10.0]]), torch.ones(2)])
    [tensor([[6., 8.]]), tensor([0., 0.])]
    """
    return [_normalized(part, weight) for part, weight in zip(direction, weights, strict=True)]


def _normalized(direction: Tensor, weight: Tensor) -> Tensor:
    if weight.dim() < 2:
        return direction.new_zeros(direction.shape)
    shape = [len(weight)] + [1] * (weight.dim() - 1)
    wanted, given = (tensor.flatten(1).norm(dim=1).view(shape) for tensor in (weight, direction))
    return direction * (wanted / given.where(given > 0, given.new_ones(())))


def line(value: Value, weights: Tensor, direction: Tensor, positions: Sequence[float]) -> list[float]:
    """Loss at w + a d for every position a.

    >>> import torch
    >>> line(lambda w: float(w @ w), torch.zeros(2), torch.tensor([1.0, 2.0]), [-1.0, 0.0, 2.0])
    [5.0, 0.0, 20.0]
    """
    return [value(weights + position * direction) for position in positions]


def plane(
    value: Value, weights: Tensor, directions: tuple[Tensor, Tensor], positions: Sequence[float]
) -> list[list[float]]:
    """Loss at w + a d_1 + b d_2: a row for every b with a value for every a.

    >>> import torch
    >>> axes = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> plane(lambda w: float(w[0] + 10 * w[1]), torch.zeros(2), axes, [0.0, 1.0])
    [[0.0, 1.0], [10.0, 11.0]]
    """
    first, second = directions
    return [line(value, weights + position * second, first, positions) for position in positions]
