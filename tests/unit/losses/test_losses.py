from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.data import FirstSamples, TokenWindows, masked_tokens
from largebatch.losses import CrossEntropy, Loss, ModuleLoss, NextToken, SquaredError, units_are_fixed

pytestmark = [pytest.mark.quick, pytest.mark.other_processor]


def classification(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(7, 5, dtype=dtype, requires_grad=True), torch.randint(5, (7,))


def language(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Four sequences of six tokens; the last but one has two valid tokens and the last one none."""
    torch.manual_seed(0)
    targets = torch.randint(9, (4, 6))
    targets[2, 2:] = -100
    targets[3, :] = -100
    return torch.randn(4, 6, 9, dtype=dtype, requires_grad=True), targets


def regression(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(7, 3, dtype=dtype, requires_grad=True), torch.randn(7, 3, dtype=dtype)


CASES = [
    (CrossEntropy(), classification),
    (CrossEntropy(label_smoothing=0.1), classification),
    (NextToken(), language),
    (NextToken(label_smoothing=0.1), language),
    (SquaredError(), regression),
]


def test_uniform_logits_lose_the_logarithm_of_the_number_of_classes() -> None:
    # Smoothing does not change it: every class has the same loss.
    for smoothing in (0.0, 0.3):
        loss = CrossEntropy(smoothing).loss_per_sample(torch.zeros(2, 10).double(), torch.tensor([3, 7]))
        torch.testing.assert_close(loss, torch.full((2,), math.log(10), dtype=torch.float64), rtol=1e-15, atol=0)


def test_cross_entropy_of_two_classes_is_the_softplus_of_the_margin() -> None:
    logits = torch.tensor([[2.0, -1.0], [2.0, -1.0]]).double()
    expected = torch.tensor([math.log1p(math.exp(-3.0)), 3.0 + math.log1p(math.exp(-3.0))], dtype=torch.float64)
    torch.testing.assert_close(CrossEntropy().loss_per_sample(logits, torch.tensor([0, 1])), expected)


def test_label_smoothing_is_the_documented_mixture() -> None:
    logits, targets = classification()
    nll = -logits.log_softmax(dim=-1)
    expected = 0.8 * nll[range(7), targets] + 0.2 / 5 * nll.sum(dim=-1)
    torch.testing.assert_close(CrossEntropy(0.2).loss_per_sample(logits, targets), expected)


def test_next_token_smoothing_is_the_documented_mixture_of_valid_tokens() -> None:
    logits, targets = language()
    nll = -logits.log_softmax(dim=-1)
    valid = targets != -100
    of_target = nll.gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    expected = ((0.8 * of_target + 0.2 / 9 * nll.sum(dim=-1)) * valid).sum(dim=1)
    torch.testing.assert_close(NextToken(label_smoothing=0.2).loss_per_sample(logits, targets), expected)


def test_squared_error_is_half_the_squared_distance() -> None:
    outputs, targets = torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    assert SquaredError().loss_per_sample(outputs, targets).tolist() == [12.5, 2.0]


def test_squared_error_gradient_is_the_difference() -> None:
    outputs, targets = regression()
    SquaredError().loss_per_sample(outputs, targets).sum().backward()
    torch.testing.assert_close(outputs.grad, (outputs - targets).detach(), rtol=1e-15, atol=0)


@pytest.mark.parametrize(("output_shape", "target_shape"), [((4, 1), (4,)), ((4,), (4, 1)), ((4,), (4,))])
def test_squared_error_of_a_column_and_a_vector_is_not_broadcast(
    output_shape: tuple[int, ...], target_shape: tuple[int, ...]
) -> None:
    outputs, targets = torch.arange(4.0).view(output_shape), torch.zeros(target_shape)
    assert SquaredError().loss_per_sample(outputs, targets).tolist() == [0.0, 0.5, 2.0, 4.5]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sums_equal_the_reductions_of_torch(smoothing: float) -> None:
    logits, targets = classification()
    total = CrossEntropy(smoothing).loss_per_sample(logits, targets).sum()
    torch.testing.assert_close(total, F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing))
    logits, targets = language()
    total = NextToken(label_smoothing=smoothing).loss_per_sample(logits, targets).sum()
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(total, expected)
    outputs, targets = regression()
    total = SquaredError().loss_per_sample(outputs, targets).sum()
    torch.testing.assert_close(total, 0.5 * F.mse_loss(outputs, targets, reduction="sum"))


def test_gradient_of_the_sum_over_units_is_that_of_the_mean() -> None:
    logits, targets = language()
    loss = NextToken()
    (ours,) = torch.autograd.grad(
        loss.loss_per_sample(logits, targets).sum() / loss.units_per_sample(targets).sum(), logits
    )
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), targets.flatten()), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-16)
    logits, targets = classification()
    ours = torch.autograd.grad(CrossEntropy().loss_per_sample(logits, targets).sum() / 7, logits)
    torch.testing.assert_close(ours, torch.autograd.grad(F.cross_entropy(logits, targets), logits))


@pytest.mark.parametrize(("loss", "case"), CASES)
def test_samples_are_independent(loss: Loss, case: object) -> None:
    outputs, targets = case()
    whole = loss.loss_per_sample(outputs, targets)
    parts = [loss.loss_per_sample(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(targets))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(whole[1], outputs)
    assert gradient[1].ne(0).any()
    assert gradient[0].eq(0).all()
    assert gradient[2:].eq(0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_tokens_contribute_nothing(smoothing: float) -> None:
    logits, targets = language()
    loss = NextToken(label_smoothing=smoothing)
    per_sample = loss.loss_per_sample(logits, targets)
    per_sample.sum().backward()
    assert loss.units_per_sample(targets).tolist() == [6, 6, 2, 0]
    assert per_sample[3].item() == 0.0
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[targets == -100].eq(0).all()
    assert logits.grad[targets != -100].ne(0).all()
    changed = logits.detach().clone()
    changed[targets == -100] = 50.0
    torch.testing.assert_close(loss.loss_per_sample(changed, targets), per_sample.detach(), rtol=0, atol=0)


def test_a_batch_without_any_valid_token_has_loss_zero_and_a_zero_gradient() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = NextToken()
    targets = torch.full((2, 3), -100)
    loss.loss_per_sample(logits, targets).sum().backward()
    assert logits.grad.eq(0).all()
    assert loss.units_per_sample(targets).sum() == 0


def test_ignore_index_may_be_a_class() -> None:
    targets = torch.tensor([[0, 2, 0]])
    logits = F.one_hot(targets, 4).double()  # all three right, two of them masked
    loss = NextToken(ignore_index=0)
    assert loss.units_per_sample(targets).tolist() == [1]
    assert loss.correct_per_sample(logits, targets).tolist() == [1]
    expected = -logits[0, 1].log_softmax(dim=0)[2]
    torch.testing.assert_close(loss.loss_per_sample(logits, targets), expected[None])


def test_targets_are_taken_as_already_shifted() -> None:
    targets = torch.tensor([[1, 2, 3]])
    assert NextToken().correct_per_sample(F.one_hot(targets, 4), targets).tolist() == [3]


def test_correct_counts_what_was_planted() -> None:
    targets = torch.tensor([0, 1, 2, 2])
    logits = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    correct = CrossEntropy().correct_per_sample(logits, targets)
    assert (correct.tolist(), correct.dtype) == ([1, 1, 1, 0], torch.int64)
    targets = torch.tensor([[0, 1, -100], [2, 2, 2]])
    logits = F.one_hot(torch.tensor([[0, 2, 1], [2, 2, 2]]), 3).float()
    assert NextToken().correct_per_sample(logits, targets).tolist() == [1, 3]
    assert SquaredError().correct_per_sample(torch.zeros(2, 1), torch.zeros(2)) is None


@pytest.mark.parametrize(("loss", "case"), CASES)
@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_losses_accumulate_in_float32_or_wider(
    loss: Loss, case: object, given: torch.dtype, computed: torch.dtype
) -> None:
    outputs, targets = case(given)
    found = loss.loss_per_sample(outputs, targets)
    assert found.dtype == computed
    # The same numbers widened first: were anything computed in 16 bits, this would differ in the third digit.
    torch.testing.assert_close(found, loss.loss_per_sample(outputs.to(computed), targets), rtol=0, atol=0)


def test_a_long_sequence_of_bfloat16_logits_keeps_float32_accuracy() -> None:
    logits = torch.zeros(1, 4096, 2, dtype=torch.bfloat16)
    loss = NextToken().loss_per_sample(logits, torch.zeros(1, 4096, dtype=torch.int64))
    assert loss.item() == pytest.approx(4096 * math.log(2), rel=1e-6)


@pytest.mark.parametrize(("loss", "case"), CASES)
def test_units_are_fixed_exactly_where_the_loss_says_so(loss: Loss, case: object) -> None:
    _, targets = case()
    units = loss.units_per_sample(targets)
    assert (units.shape, units.dtype) == ((len(targets),), torch.int64)
    assert loss.fixed_units == isinstance(loss, SquaredError)  # labels of the others may be masked
    assert loss.unit == {"NextToken": "token", "CrossEntropy": "label", "SquaredError": "sample"}[type(loss).__name__]


@pytest.mark.parametrize(("loss", "case"), CASES)
def test_outputs_may_carry_their_logits_as_an_attribute(loss: Loss, case: object) -> None:
    outputs, targets = case()
    wrapped = SimpleNamespace(loss=None, logits=outputs)
    assert torch.equal(loss.loss_per_sample(wrapped, targets), loss.loss_per_sample(outputs, targets))
    correct = loss.correct_per_sample(outputs, targets)
    assert correct is None or torch.equal(loss.correct_per_sample(wrapped, targets), correct)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "message"),
    [
        (CrossEntropy(), torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64), r"\[4, 3\] and targets \[5\]"),
        (CrossEntropy(), torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.int64), r"targets \[4, 1\]"),
        (CrossEntropy(), torch.zeros(4, 3), torch.zeros(4), r"torch.float32.*\.long\(\)"),
        (CrossEntropy(), SimpleNamespace(logits=None), torch.zeros(4), "without a tensor in .logits"),
        (CrossEntropy(), (torch.zeros(4, 3),), torch.zeros(4), "returned a tuple of Tensor"),
        (
            CrossEntropy(),
            SimpleNamespace(logits=torch.zeros(2, 3, 3)),
            torch.zeros(2, 3, dtype=torch.int64),
            "loss=per_token",
        ),
        (NextToken(), torch.zeros(2, 6, 9), torch.zeros(2, 5, dtype=torch.int64), r"targets \[n, T\]"),
        (NextToken(), torch.zeros(12, 9), torch.zeros(12, dtype=torch.int64), r"outputs \[n, T, V\]"),
        (SquaredError(), torch.zeros(4, 3), torch.zeros(4), r"\[4, 3\] and targets \[4\]"),
        (SquaredError(), torch.zeros(1), torch.zeros(4), r"\[1\] and targets \[4\]"),
        (SquaredError(), torch.zeros(2, 3, 2), torch.zeros(2, 2, 3), r"\[2, 3, 2\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(loss: Loss, outputs: object, targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss.loss_per_sample(outputs, targets)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_smoothing_outside_its_range_is_refused(smoothing: float) -> None:
    for loss in (CrossEntropy, NextToken):
        with pytest.raises(ValueError, match="label_smoothing="):
            loss(label_smoothing=smoothing)


def test_a_token_loss_without_a_masking_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ignore_index=None.*-100"):
        NextToken(ignore_index=None)


@pytest.mark.parametrize(
    ("loss", "dataset", "fixed"),
    [
        (CrossEntropy(), object(), False),
        (CrossEntropy(ignore_index=None), object(), True),
        (CrossEntropy(weight=[1.0, 2.0]), SimpleNamespace(label_range=(0, 1)), False),
        (CrossEntropy(), SimpleNamespace(label_range=(0, 1)), True),
        (CrossEntropy(), SimpleNamespace(label_range=(-100, 1)), False),
        (NextToken(), SimpleNamespace(label_range=(0, 1)), False),
        (ModuleLoss(nn.CrossEntropyLoss()), SimpleNamespace(label_range=(0, 1)), True),
        (ModuleLoss(nn.CrossEntropyLoss(weight=torch.ones(2))), SimpleNamespace(label_range=(0, 1)), False),
        (NextToken(), TokenWindows(np.arange(9), context_length=4, vocab_size=9), True),
        (NextToken(ignore_index=8), TokenWindows(np.arange(9), context_length=4, vocab_size=9), False),
        (NextToken(), FirstSamples(TokenWindows(np.arange(9), context_length=4, vocab_size=9), 1), True),
        (NextToken(), masked_tokens(20, 4, 9, "train"), False),
        (NextToken(), object(), False),
    ],
)
def test_units_are_fixed_where_no_target_can_be_masked(loss: Any, dataset: Any, fixed: bool):
    assert units_are_fixed(loss, dataset) == fixed
