"""What a loop may do to its gradients: what is measured all the same, and what is left out with the reason."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch.diagnostics import MeasuredStep, NoiseTracker, track

ROWS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).double() + 0.2
HALVES = ROWS.chunk(2)


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    return (model(rows) - rows.sum(dim=1, keepdim=True)).square().mean()


def made(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, NoiseTracker]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    return model, torch.optim.SGD(model.parameters(), lr=0.0), track(model, **options)


@pytest.fixture(scope="module")
def truth() -> MeasuredStep:
    model, optimizer, tracker = made()
    with tracker:
        plain(model, optimizer)
    assert tracker.latest is not None
    return tracker.latest


def plain(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    for rows in HALVES:
        loss_of(model, rows).div(2).backward()
    optimizer.step()


def same(found: MeasuredStep | None, truth: MeasuredStep, *, scale: float = 1.0) -> bool:
    assert found is not None
    own = (found.trace, found.grad_sq_norm, found.grad_norm**2)
    return own == pytest.approx([scale**2 * one for one in (truth.trace, truth.grad_sq_norm, truth.grad_norm**2)])


def step_with_closure(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def closure() -> float:
        plain_loss = 0.0
        optimizer.zero_grad()
        for rows in HALVES:
            loss = loss_of(model, rows).div(2)
            loss.backward()
            plain_loss += loss.item()
        return plain_loss

    optimizer.step(closure)


def zero_after_forward(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Cleared between the first forward pass and its backward pass, as many loops do."""
    first = loss_of(model, HALVES[0]).div(2)
    optimizer.zero_grad()
    first.backward()
    loss_of(model, HALVES[1]).div(2).backward()
    optimizer.step()


def given_up_before(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step that a guard, or a loss scaler, left out."""
    loss_of(model, 9 * HALVES[0]).backward()
    optimizer.zero_grad()
    plain(model, optimizer)


def unscaled(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    for rows in HALVES:
        (512 * loss_of(model, rows).div(2)).backward()
    for one in model.parameters():
        assert one.grad is not None
        one.grad /= 512
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()


@pytest.mark.parametrize("loop", [step_with_closure, zero_after_forward, given_up_before])
def test_ways_to_write_a_loop_measure_the_same(truth, loop):
    model, optimizer, tracker = made()
    with tracker:
        loop(model, optimizer)
    assert same(tracker.latest, truth)
    assert not tracker.left_out


def test_a_scaled_loss_is_measured_in_units_of_the_loss(truth):
    model, optimizer, tracker = made(scaler=SimpleNamespace(get_scale=lambda: 512.0))
    with tracker:
        unscaled(model, optimizer)
    assert same(tracker.latest, truth)
    model, optimizer, without = made()
    with without:
        unscaled(model, optimizer)
    assert same(without.latest, truth, scale=512.0)


def test_parts_of_the_model_count_when_the_loop_says_so(truth):
    model, optimizer, tracker = made()
    with tracker:
        for rows in HALVES:
            tracker.micro_batch(len(rows))
            (model[2](model[1](model[0](rows))) - rows.sum(dim=1, keepdim=True)).square().mean().div(2).backward()
        optimizer.step()
    assert same(tracker.latest, truth)


def clipped_by_value(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for rows in HALVES:
        loss_of(model, rows).backward()
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)


def one_pass(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss_of(model, ROWS).backward()


def two_forwards(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    (loss_of(model, HALVES[0]) + loss_of(model, HALVES[1])).backward()
    loss_of(model, HALVES[0]).backward()


def two_backwards(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss = loss_of(model, HALVES[0])
    loss.backward(retain_graph=True)
    loss.backward()


def overflown(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for rows in HALVES:
        (float("inf") * loss_of(model, rows)).backward()


def of_parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for rows in HALVES:
        model[2](model[1](model[0](rows))).sum().backward()


REFUSALS: list[tuple[Callable[..., None], str]] = [
    (one_pass, "single micro-batch"),
    (clipped_by_value, "clipped by value"),
    (two_forwards, "ran several times before a backward pass"),
    (two_backwards, "two gradients from one micro-batch"),
    (overflown, "not finite"),
    (of_parts, "without a forward pass of the tracked model"),
]


@pytest.mark.parametrize(("loop", "reason"), REFUSALS, ids=[reason for _, reason in REFUSALS])
def test_what_cannot_be_measured_is_left_out_with_the_reason(loop, reason):
    model, optimizer, tracker = made()
    with tracker, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            optimizer.zero_grad()
            loop(model, optimizer)
            optimizer.step()
        with pytest.raises(ValueError, match=f"{reason}.*2 steps"):
            tracker.noise_scale  # noqa: B018
    assert [reason in str(one.message) for one in told] == [True], "told once"


def test_a_gradient_that_was_not_cleared_is_noticed_and_the_next_step_counts_again(truth):
    model, optimizer, tracker = made()
    with tracker, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sign in (1, -1):
            for rows in HALVES:
                loss_of(model, sign * rows).backward()
            optimizer.step()
        plain(model, optimizer)
    assert [*tracker.left_out.values()] == [1]
    assert same(tracker.latest, truth)


def test_sparse_gradients_are_left_out():
    model = nn.Sequential(nn.Embedding(9, 3, sparse=True), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = track(model)
    for _ in range(2):
        model(torch.arange(4)).sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="sparse=False"):
        tracker.close()


def test_two_optimizers_of_one_model_make_one_step(truth):
    model, _, tracker = made()
    first, second = (torch.optim.SGD(part.parameters(), lr=0.0) for part in (model[0], model[2]))
    with tracker:
        for _ in range(2):
            model.zero_grad()
            for rows in HALVES:
                loss_of(model, rows).div(2).backward()
            second.step()
            first.step()
    assert same(tracker.latest, truth)
    assert (tracker.num_steps, dict(tracker.left_out)) == (2, {})


def test_only_every_kth_step_is_measured_and_others_have_no_hooks():
    model, optimizer, tracker = made(every=3)
    hooks = []
    with tracker:
        for _ in range(6):
            optimizer.zero_grad()
            for rows in HALVES:
                loss = loss_of(model, rows)
                hooks.append(bool(model[0].weight._backward_hooks))
                loss.div(2).backward()
            optimizer.step()
        assert tracker.noise_scale is not None
        assert tracker.noise_scale.num_measurements == 2
    assert hooks == [True, True, False, False, False, False] * 2


def test_copies_and_saved_models_are_not_tracked(truth):
    model, optimizer, tracker = made()
    with tracker:
        average = copy.deepcopy(model)
        pickle.dumps(model)
        torch.save(model, io.BytesIO())
        for rows in HALVES:
            loss_of(model, rows).div(2).backward()
            average(rows)
        optimizer.step()
    assert same(tracker.latest, truth)
    assert not model._forward_pre_hooks


def test_a_tracker_that_nobody_keeps_leaves_the_loop():
    model, optimizer, tracker = made()
    del tracker
    assert not model._forward_pre_hooks
    plain(model, optimizer)


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(5)
    while True:
        yield torch.randn(4, 4, generator=generator, dtype=torch.float64) + 0.2


def test_a_saved_tracker_continues_where_it_was():
    results = []
    for pauses in (False, True):
        model, optimizer, tracker = made(window=10)
        stream = batches()
        for step in range(30):
            if pauses and step == 17:
                state = pickle.loads(pickle.dumps(tracker.state_dict()))
                tracker.close()
                tracker = track(model, window=10)
                tracker.load_state_dict(state)
            for _ in range(2):
                loss_of(model, next(stream)).div(2).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(tracker.state_dict())
        tracker.close()
    assert results[0] == results[1]
    assert results[0]["num_steps"] == 30
    assert len(results[0]["measurements"]) == 10


@pytest.mark.parametrize(
    ("options", "told"),
    [({"reduction": "none"}, "must be 'mean' or 'sum'"), ({"every": 0}, "every=0"), ({"window": 0}, "window=0")],
)
def test_settings_that_mean_nothing_are_errors(options, told):
    with pytest.raises(ValueError, match=told):
        track(nn.Linear(2, 2), **options)


def test_models_without_visible_gradients_are_refused():
    with pytest.raises(ValueError, match="no parameter with requires_grad"):
        track(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match="run one batch through the model"):
        track(nn.LazyLinear(2))
