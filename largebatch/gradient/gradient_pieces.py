"""Gradients of a module, in pieces of bounded size for ranks to send."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """Neighbouring elements of the gradients of one dtype: of each gradient `place` those from `start` to `end`."""

    slices: tuple[tuple[int, int, int], ...]

    def read(self, gradients: Sequence[Tensor]) -> Tensor:
        """A copy of the elements, [n]."""
        return torch.cat(self._parts(gradients))

    def write(self, gradients: Sequence[Tensor], values: Tensor) -> None:
        """Write what `read` returned back into gradients, where they are."""
        sizes = [end - start for _, start, end in self.slices]
        torch._foreach_copy_(self._parts(gradients), list(values.split(sizes)))

    def _parts(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        return [_in_memory_order(gradients[place])[start:end] for place, start, end in self.slices]


class GradientPieces:
    """The gradients of the parameters that are trained; they stay where they are, with their strides.

    A gradient has the strides of its parameter, as autograd sees to, so ranks send elements in the same order. As in
    DDP, a piece holds as many gradients as fit; unlike there, a large gradient is cut.

    Args:
        module: the unwrapped model.
        most_bytes: of a piece.
    """

    def __init__(self, module: nn.Module, *, most_bytes: int) -> None:
        self.parameters = [one for one in module.parameters() if one.requires_grad]
        self.pieces = list(_cut(self.parameters, most_bytes))

    def gradients(self) -> list[Tensor]:
        """All of them, as `.grad` has them; a missing one is made, and is 0."""
        for one in self.parameters:
            if one.grad is None:
                one.grad = torch.zeros_like(one)
        return [one.grad for one in self.parameters if one.grad is not None]

    def take(self) -> list[Tensor]:
        """As `gradients`, and leave none."""
        taken = self.gradients()
        for one in self.parameters:
            one.grad = None
        return taken

    def put(self, gradients: Sequence[Tensor]) -> None:
        """Make them `.grad`."""
        for one, gradient in zip(self.parameters, gradients, strict=True):
            one.grad = gradient


def _cut(parameters: Sequence[nn.Parameter], most_bytes: int) -> Iterator[Piece]:
    for dtype in dict.fromkeys(one.dtype for one in parameters):
        slices: list[tuple[int, int, int]] = []
        most = room = max(most_bytes // dtype.itemsize, 1)
        for place, one in enumerate(parameters):
            start = 0 if one.dtype == dtype else one.numel()
            while start < one.numel():
                end = min(start + room, one.numel())
                slices.append((place, start, end))
                room -= end - start
                start = end
                if room == 0:
                    yield Piece(tuple(slices))
                    slices, room = [], most
        if slices:
            yield Piece(tuple(slices))


def _in_memory_order(gradient: Tensor) -> Tensor:
    """All elements of a gradient, [n], as they lie in memory: a view, also of channels that come last."""
    return gradient.as_strided((gradient.numel(),), (1,))
