"""Gradients in pieces: every element once, bounded, written back where it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch.gradient.gradient_pieces import GradientPieces


class Mixed(nn.Module):
    """Parameters of two dtypes, with channels last, transposed, frozen, and with a single element."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.coarse = nn.Parameter(torch.randn(7, 3).bfloat16())
        self.scale = nn.Parameter(torch.randn(()))
        self.matrix = nn.Parameter(torch.randn(9, 5).T)


@pytest.mark.parametrize("most_bytes", [1, 12, 64, 10**9])
def test_pieces_hold_every_element_once_and_leave_gradients_where_they_are(most_bytes):
    module = Mixed()
    for one in module.parameters():
        if one.requires_grad and one.dim():
            one.grad = torch.randn_like(one)
    gradients = GradientPieces(module, most_bytes=most_bytes)
    before = {id(one): (one.grad.data_ptr(), one.grad.clone()) for one in gradients.parameters if one.grad is not None}
    values = gradients.gradients()
    for piece in gradients.pieces:
        found = piece.read(values)
        assert found.nbytes <= max(most_bytes, found.element_size())
        piece.write(values, 2 * found)
    assert module.frozen.grad is None
    assert module.scale.grad == 0, "a missing one counts as 0"
    for one in gradients.parameters:
        assert one.grad is not None
        assert one.grad.stride() == one.stride()
        if id(one) in before:
            place, old = before[id(one)]
            assert one.grad.data_ptr() == place
            assert torch.equal(one.grad, 2 * old)
