"""Cross-entropy in pieces: the losses and gradients of all logits at once, in a fraction of the memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from largebatch.diagnostics.memory.live_bytes import LiveBytes
from largebatch.losses import CrossEntropy, NextToken, in_pieces, module_loss
from largebatch.losses.in_pieces import LOGITS_AT_ONCE
from largebatch.losses.module_loss import ModuleLoss

VOCABULARY = 11


def case(name: str) -> tuple[Any, Tensor, Tensor]:
    """A loss, logits in float64 and targets."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.rand(VOCABULARY, generator=generator).tolist()
    shape = {"images": (5, VOCABULARY, 3, 2), "tokens": (3, 7, VOCABULARY)}.get(name, (6, VOCABULARY))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 4
    kinds: tuple[int, ...] = {"images": (5, 3, 2), "tokens": (3, 7)}.get(name, (6,))
    targets = torch.randint(VOCABULARY, kinds, generator=generator)
    targets.view(-1)[::4] = -100
    if name == "tokens":
        return NextToken(label_smoothing=0.1, weight=weight, shift=True), logits, targets
    if name == "probabilities":
        return CrossEntropy(label_smoothing=0.1), logits, torch.rand(shape, generator=generator).softmax(1).double()
    return CrossEntropy(label_smoothing=0.1, weight=weight), logits, targets


def derivatives(loss: Any, logits: Tensor, targets: Tensor) -> list[Tensor]:
    """Losses, their gradient, and a gradient of that one's squared norm."""
    logits = logits.detach().clone().requires_grad_()
    losses = loss.loss_per_sample(logits, targets)
    factors = torch.arange(1.0, 1 + len(losses), dtype=losses.dtype)
    (gradient,) = torch.autograd.grad((losses * factors).sum(), logits, retain_graph=True)
    (again,) = torch.autograd.grad((losses * factors).sum(), logits, create_graph=True)
    (curvature,) = torch.autograd.grad(again.square().sum(), logits)
    return [losses.detach(), gradient, again.detach(), curvature]


@pytest.mark.parametrize("at_once", [1, 2 * VOCABULARY, 5 * VOCABULARY + 3])
@pytest.mark.parametrize("name", ["classes", "probabilities", "images", "tokens"])
def test_pieces_have_the_losses_gradients_and_second_derivatives_of_all_logits_at_once(name: str, at_once: int) -> None:
    loss, logits, targets = case(name)
    expected = derivatives(replace(loss, logits_at_once=None), logits, targets)
    found = derivatives(replace(loss, logits_at_once=at_once), logits, targets)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_logits_in_bfloat16_are_widened_before_anything_is_computed() -> None:
    loss, logits, targets = case("tokens")
    narrow = logits.bfloat16().requires_grad_()
    losses = replace(loss, logits_at_once=2 * VOCABULARY).loss_per_sample(narrow, targets)
    assert losses.dtype == torch.float32
    truth = narrow.detach().double().requires_grad_()
    expected = loss.loss_per_sample(truth, targets)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    losses.sum().backward()
    expected.sum().backward()
    assert narrow.grad is not None
    assert narrow.grad.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.grad.double(), truth.grad, rtol=2**-8, atol=1e-6)


def peak_gib(loss: NextToken, *, copies_outputs: bool) -> float:
    """Of the loss of GPT-2 and its gradient, 8 samples of 1,024 tokens under bfloat16 autocast; nothing is computed."""
    with FakeTensorMode(), LiveBytes() as memory:
        logits = torch.empty(8, 1024, 50257, dtype=torch.bfloat16).requires_grad_()
        targets = torch.empty(8, 1024, dtype=torch.int64)
        loss.loss_per_sample(logits.float() if copies_outputs else logits, targets).sum().backward()
    return memory.peak / 2**30


def test_the_loss_of_gpt2_holds_logits_and_gradient_and_a_few_pieces() -> None:
    """1.9 GiB, where 5.4 were held before: a float32 copy, its log-softmax, and gradients of both."""
    logits = 8 * 1024 * 50257 * 2 / 2**30
    assert peak_gib(NextToken(), copies_outputs=False) < 2 * logits + 4 * LOGITS_AT_ONCE * 4 / 2**30
    assert peak_gib(NextToken(logits_at_once=None), copies_outputs=True) > 6.9 * logits


@pytest.mark.parametrize("name", ["classes", "probabilities", "images"])
def test_the_cross_entropy_of_torch_gets_pieces_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, logits, targets = case(name)
    weight = None if own.weight is None else torch.tensor(own.weight)
    loss = ModuleLoss(nn.CrossEntropyLoss(label_smoothing=0.1, weight=weight))
    expected = derivatives(loss, logits, targets)
    monkeypatch.setattr(module_loss, "LOGITS_AT_ONCE", logits[:1].numel())
    applied = Mock(wraps=in_pieces._InPieces.apply)
    monkeypatch.setattr(in_pieces._InPieces, "apply", applied)
    for ours, theirs in zip(derivatives(loss, logits, targets), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert applied.call_count == 1
