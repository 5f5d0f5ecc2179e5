"""Evaluation counts every example exactly once on any world."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.data import ArrayDataset, masked_tokens, paired_views
from largebatch.diagnostics.gap.gap import EvalSums
from largebatch.distributed.runtime import Runtime
from largebatch.losses import CrossEntropy, NextToken
from largebatch.losses.coupled import InfoNCE
from largebatch.models import GPT, MLP, TwoViews
from largebatch.training.loop import train
from largebatch.training.observers import EvaluationObserver, MetricsObserver, RowLog
from tests.multiprocess.made_run import made_run
from tests.watching import Rows


def problem(kind: str, num_validation: int) -> tuple[Any, Any, Any, Any]:
    torch.manual_seed(1)
    if kind == "tokens":
        train_set, validation = (
            masked_tokens(count, 8, 11, split) for count, split in ((40, "train"), (num_validation, "validation"))
        )
        return GPT(11, 8, num_layers=1, num_heads=2, width=16), NextToken(), train_set, validation
    if kind == "pairs":
        sets = [paired_views(count, (6,), split) for count, split in ((40, "train"), (num_validation, "validation"))]
        return TwoViews(MLP(6, 4, hidden=[5])), InfoNCE(0.2), *sets
    sets = [ArrayDataset(torch.randn(count, 6), torch.randint(0, 3, (count,))) for count in (40, num_validation)]
    return MLP(6, 3, hidden=[5]), CrossEntropy(), *sets


def evaluate(kind: str, num_validation: int, steps: int = 2) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    with Runtime.open(precision="fp64") as runtime:
        model, loss, train_set, validation = problem(kind, num_validation)
        tracker = Rows()
        journal = RowLog([tracker], num_samples=40)
        plan = BatchPlan.solve(global_batch_size=8, world_size=runtime.world_size)
        observer = EvaluationObserver(
            journal, train=train_set, validation=validation, loss=loss, every=8, micro_batch_size=4
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = made_run(
            runtime,
            model,
            loss,
            optimizer,
            plan,
            train_set,
            lambda _: 0.1,
            steps,
            log_every=1,
            observers=[MetricsObserver(journal, every=1), observer],
        )
        train(run)
        return tracker.rows, [parameter.detach().numpy() for parameter in run.module.parameters()]


@torch.no_grad()
def evaluated(model: Any, weights: list[np.ndarray]) -> Any:
    """`model` as it was evaluated last: with these weights, in float64 and eval mode."""
    model = model.double().eval()
    for parameter, value in zip(model.parameters(), weights, strict=True):
        parameter.copy_(torch.from_numpy(value))
    return model


@pytest.mark.fault(47, "uneven data over ranks", "exact weights; each example once")
@pytest.mark.parametrize("kind", ["classes", "tokens"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_validation", [21, 3])
def test_every_example_counts_exactly_once_on_any_world(ranks, kind, world_size, num_validation):
    """21 examples over 2 or 4 ranks in batches of 4; 3 examples leave a rank of 4 without any."""
    rows, weights = ranks(world_size).run(evaluate, kind, num_validation)[0]
    model, _, train_set, validation = problem(kind, num_validation)
    model = evaluated(model, weights)
    last = next(row for row in reversed(rows) if "eval/val_loss" in row)
    for name, dataset in (("val", validation), ("train", train_set)):
        ids = np.arange(num_validation) if name == "val" else train_subset_ids(num_validation)
        inputs, targets = dataset.fetch(ids)
        with torch.no_grad():
            logits = model(inputs.double() if inputs.is_floating_point() else inputs).flatten(0, -2)
        kept = targets.flatten() != -100
        expected = F.cross_entropy(logits[kept], targets.flatten()[kept])
        accuracy = (logits.argmax(-1) == targets.flatten())[kept].double().mean()
        assert last[f"eval/{name}_loss"] == pytest.approx(expected.item(), rel=1e-12)
        assert last[f"eval/{name}_accuracy"] == pytest.approx(accuracy.item(), rel=1e-12)
    assert last["gap/loss"] == pytest.approx(last["eval/val_loss"] - last["eval/train_loss"], abs=1e-12)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(("num_validation", "sizes"), [(21, (4, 4, 4, 3, 3, 3)), (5, (3, 2)), (3, (3,))])
def test_a_loss_that_compares_samples_is_taken_within_the_same_batches_on_any_world(
    ranks, world_size, num_validation, sizes
):
    """Batches of 4 at most that differ by one at most, each on one rank; every batch is one draw."""
    rows, weights = ranks(world_size).run(evaluate, "pairs", num_validation)[0]
    model, loss, train_set, validation = problem("pairs", num_validation)
    model = evaluated(model, weights)
    last = next(row for row in reversed(rows) if "eval/val_loss" in row)
    for name, dataset in (("val", validation), ("train", train_set)):
        order = SampleOrder(len(dataset), stream_key(0, "evaluated subset"))
        inputs, _ = dataset.fetch(order.ids(0, num_validation))
        with torch.no_grad():
            parts = [loss.loss_per_sample(model(part), part[:, 0, 0]) for part in inputs.double().split(sizes)]
        of_batches = torch.stack([part.sum() for part in parts])
        expected = EvalSums.from_batch(of_batches, torch.tensor(sizes))
        assert last[f"eval/{name}_loss"] == pytest.approx(expected.mean_loss, rel=1e-12)
        if name == "val":
            correct = sum(
                int(loss.correct_per_sample(model(p), p[:, 0, 0]).sum()) for p in inputs.double().split(sizes)
            )
            assert last["eval/val_accuracy"] == pytest.approx(correct / num_validation, rel=1e-12)
    assert ("gap/loss_stderr" in last) == ("eval/val_accuracy_stderr" in last) == (len(sizes) > 1)


def train_subset_ids(count: int) -> np.ndarray:
    return SampleOrder(40, stream_key(0, "evaluated subset")).ids(0, count)


def test_rows_carry_position_loss_rate_norm_throughput_and_times(ranks):
    rows, _ = ranks(2).run(evaluate, "classes", 21)[0]
    first = rows[0]
    assert (first["step"], first["samples_seen"], first["epoch"]) == (1, 8, 8 / 40)
    for key in ("train/loss", "train/lr", "train/grad_norm", "train/samples_per_s", "time/step_s", "time/data_s"):
        assert np.isfinite(first[key]), key
    parts = first["time/data_s"] + first["time/compute_s"] + first["time/communication_s"]
    assert parts == pytest.approx(first["time/step_s"], rel=1e-6)
    assert first["time/communication_s"] > 0
    assert [row["step"] for row in rows] == [1, 1, 2, 2], "a training row and an evaluation row per step"
