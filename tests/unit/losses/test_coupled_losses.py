from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from largebatch.data import paired_views
from largebatch.losses import CrossEntropy
from largebatch.losses import coupled as coupled_losses
from largebatch.losses.coupled import InfoNCE, is_coupled
from largebatch.models import Linear, TwoViews


def representations(n: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(n, 2, 5, dtype=dtype).requires_grad_()


def loss_of(outputs: Tensor, loss: InfoNCE) -> Tensor:
    return loss.loss_per_sample(outputs, torch.zeros(len(outputs)))


def test_representations_that_are_all_alike_lose_the_logarithm_of_the_number_of_candidates() -> None:
    alike = torch.ones(6, 2, 3).double()
    for negatives, candidates in (("all", 11), ("other_view", 6)):
        loss = loss_of(alike, InfoNCE(0.1, negatives))
        torch.testing.assert_close(
            loss, torch.full((6,), math.log(candidates), dtype=torch.float64), rtol=1e-14, atol=0
        )


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_orthogonal_pairs_have_the_loss_of_the_closed_form(temperature: float) -> None:
    """Both views of sample k are the unit vector k: cosine 1 with the partner, 0 with all others."""
    views = 3 * torch.eye(4).double()[:, None].expand(4, 2, 4)
    for negatives, others in (("all", 6), ("other_view", 3)):
        expected = math.log1p(others * math.exp(-1 / temperature))
        loss = loss_of(views, InfoNCE(temperature, negatives))
        torch.testing.assert_close(loss, torch.full((4,), expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_equation_1_of_simclr_term_by_term() -> None:
    outputs, t = representations(), 0.3
    unit = outputs / outputs.norm(dim=2, keepdim=True)
    views = [unit[k, v] for k in range(7) for v in (0, 1)]

    def term(i: int, j: int) -> Tensor:
        total = sum(torch.exp(views[i] @ views[k] / t) for k in range(14) if k != i)
        return -torch.log(torch.exp(views[i] @ views[j] / t) / total)

    expected = torch.stack([(term(2 * k, 2 * k + 1) + term(2 * k + 1, 2 * k)) / 2 for k in range(7)])
    torch.testing.assert_close(loss_of(outputs, InfoNCE(t)), expected, rtol=1e-12, atol=0)


def test_the_symmetric_loss_of_clip() -> None:
    """The pseudocode of Radford et al. 2021, figure 3, whose temperature multiplies."""
    outputs, t = representations(), 0.3
    first, second = (nn.functional.normalize(outputs[:, view], dim=1) for view in (0, 1))
    logits = first @ second.T * (1 / t)
    labels = torch.arange(7)
    expected = (nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(loss_of(outputs, InfoNCE(t, "other_view")).mean(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("negatives", ["all", "other_view"])
def test_negatives_carry_gradient(negatives: str) -> None:
    outputs = representations()
    (gradient,) = torch.autograd.grad(loss_of(outputs, InfoNCE(0.3, negatives))[0], outputs)
    assert gradient.flatten(1).ne(0).any(dim=1).all(), "the loss of sample 0 moves every sample"


@pytest.mark.parametrize("negatives", ["all", "other_view"])
@pytest.mark.parametrize("anchors_at_once", [1, 3, 7])
def test_similarities_in_blocks_change_neither_loss_nor_gradient(
    monkeypatch: pytest.MonkeyPatch, negatives: str, anchors_at_once: int
) -> None:
    outputs, loss = representations(), InfoNCE(0.3, negatives)
    expected = loss_of(outputs, loss)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), outputs)
    correct = loss.correct_per_sample(outputs, torch.zeros(7))
    monkeypatch.setattr(coupled_losses, "_ANCHORS_AT_ONCE", anchors_at_once)
    found = loss_of(outputs, loss)
    (gradient,) = torch.autograd.grad(found.sum(), outputs)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-15)
    assert torch.equal(loss.correct_per_sample(outputs, torch.zeros(7)), correct)


def gradient_of(loss_sum: Tensor, outputs: Tensor) -> Tensor:
    return torch.autograd.grad(loss_sum, outputs)[0]


@pytest.mark.parametrize("negatives", ["all", "other_view"])
def test_losses_and_derivatives_of_unequal_shares_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, negatives: str
) -> None:
    monkeypatch.setattr(coupled_losses, "_ANCHORS_AT_ONCE", 4)
    outputs, targets, loss = representations(11), torch.zeros(11), InfoNCE(0.3, negatives)
    shares = [slice(0, 5), slice(5, 6), slice(6, 11)]
    found = [loss.loss_of_rows(outputs, targets, rows) for rows in shares]
    expected = loss.loss_per_sample(outputs, targets)
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-14, atol=0)
    gradient = torch.stack([gradient_of(part.sum(), outputs) for part in found]).sum(dim=0)
    torch.testing.assert_close(gradient, gradient_of(expected.sum(), outputs), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("negatives", ["all", "other_view"])
def test_the_work_of_a_rank_falls_with_the_number_of_ranks(negatives: str) -> None:
    """Counted by torch, forward and backward, as every rank of 16 calls it."""

    def work(rows: slice) -> int:
        outputs = torch.randn(64, 2, 32, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            InfoNCE(negatives=negatives).loss_of_rows(outputs, torch.zeros(64), rows).sum().backward()
        return counter.get_total_flops()

    whole = work(slice(0, 64))
    assert whole == 3 * 2 * 32 * (128 * 128 if negatives == "all" else 2 * 64 * 64)
    assert [work(slice(4 * rank, 4 * rank + 4)) for rank in range(16)] == [whole // 16] * 16


def test_the_graph_of_a_large_batch_holds_no_similarities() -> None:
    """It grows with the batch, not with its square."""

    def saved_numbers(n: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
            return tensor

        outputs = torch.randn(n, 2, 4, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_of(outputs, InfoNCE())
        loss.sum().backward()
        return sum(sizes.values())

    assert saved_numbers(2048) < 2.5 * saved_numbers(1024) < 1024 * 1024


def test_one_sample_alone_has_loss_zero_and_a_gradient_of_zero() -> None:
    for negatives in ("all", "other_view"):
        outputs = representations(1)
        loss = loss_of(outputs, InfoNCE(0.1, negatives))
        loss.sum().backward()
        assert loss.tolist() == [0.0]
        assert outputs.grad is not None
        assert outputs.grad.eq(0).all()


def test_a_sample_is_correct_if_its_first_view_finds_its_second() -> None:
    first = torch.eye(3)
    second = torch.stack([first[0], first[2], first[2]])  # the second sample's second view looks like the third sample
    outputs = torch.stack([first, second], dim=1)
    correct = InfoNCE().correct_per_sample(outputs, torch.zeros(3))
    assert (correct.tolist(), correct.dtype) == ([1, 0, 0], torch.int64), "the third finds the second's, which is equal"


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16])
def test_similarities_are_taken_in_float32_or_wider(given: torch.dtype) -> None:
    outputs = representations(dtype=given)
    found = loss_of(outputs, InfoNCE())
    assert found.dtype == torch.float32
    assert torch.equal(found, loss_of(outputs.float(), InfoNCE()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: must be finite and above 0"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"negatives": "hard"}, "negatives='hard': choose 'all'"),
    ],
)
def test_settings_outside_their_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InfoNCE(**arguments)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.zeros(4, 3), r"outputs \[4, 3\] and 4 targets: it needs representations \[n, 2, d\]"),
        (torch.zeros(4, 3, 5), r"\[4, 3, 5\]"),
        (torch.zeros(8, 2, 5), r"\[8, 2, 5\] and 4 targets"),
        ((torch.zeros(4, 2, 5),), "outputs tuple"),
    ],
)
def test_outputs_without_two_views_are_refused(outputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InfoNCE().loss_per_sample(outputs, torch.zeros(4))


def test_a_loss_says_whether_it_compares_samples() -> None:
    assert is_coupled(InfoNCE())
    assert not is_coupled(CrossEntropy())
    assert not is_coupled(None)


def test_two_views_are_encoded_alike_and_stay_together() -> None:
    torch.manual_seed(0)
    encoder = Linear(6, 4)
    inputs = torch.randn(5, 2, 1, 2, 3)
    outputs = TwoViews(encoder)(inputs)
    assert outputs.shape == (5, 2, 4)
    for view in (0, 1):
        torch.testing.assert_close(outputs[:, view], encoder(inputs[:, view]))
    with pytest.raises(ValueError, match=r"\[5, 3, 6\].*data=paired_views"):
        TwoViews(encoder)(torch.zeros(5, 3, 6))


def test_paired_views_have_the_documented_cosines_and_do_not_depend_on_their_number() -> None:
    data = paired_views(400, (16, 16), "train", noise=0.5)
    unit = nn.functional.normalize(data.inputs.flatten(2), dim=2)
    assert data.inputs.shape == (400, 2, 16, 16)
    cosines = (unit[:, 0] * unit[:, 1]).sum(dim=1)
    # Standard deviation of a cosine in 256 dimensions: 1/16; of the mean of 400: 0.003.
    assert cosines.mean().item() == pytest.approx(1 / 1.25, abs=0.015)
    assert (unit[:-1, 0] * unit[1:, 1]).sum(dim=1).mean().item() == pytest.approx(0.0, abs=0.015)
    assert torch.equal(paired_views(3, (16, 16), "train", noise=0.5).inputs, data.inputs[:3])
    assert not torch.equal(paired_views(3, (16, 16), "validation", noise=0.5).inputs, data.inputs[:3])
    assert paired_views(2, (3,), "train", noise=0.0).inputs.diff(dim=1).eq(0).all()
    with pytest.raises(ValueError, match="noise=-1"):
        paired_views(3, (4,), "train", noise=-1)
