"""What torch's losses mean by their mean is what any number of ranks trains, evaluates and measures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.data import ArrayDataset
from largebatch.diagnostics.noise.measurement import VarianceSettings, measure_variance
from largebatch.diagnostics.sharpness.subset import FixedSubset, SubsetLoss
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.snapshots import measuring
from largebatch.losses import CrossEntropy, ModuleLoss, NextToken
from largebatch.training.loop import train
from largebatch.training.observers import EvaluationObserver, RowLog
from tests.multiprocess.made_run import made_run
from tests.watching import AfterStep, Rows

pytestmark = pytest.mark.quick

SAMPLES, BATCH, STEPS, RATE = 40, 13, 3, 0.2
WEIGHT = [0.01, 0.05, 0.002, 0.1]  # the weights of a batch sum up to less than 1
KINDS = ("ignored", "weights", "smoothed", "pixels", "shares", "shifted", "binary", "squared", "torch")


class Cells(nn.Module):
    """Four logits for each of three places of a sample: [n, 4, 3], or [n, 3, 4]."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(6, 12), last

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.layer(inputs).tanh().view(-1, 4, 3)
        return outputs.transpose(1, 2) if self.last else outputs


def problem(kind: str) -> tuple[nn.Module, Any, ArrayDataset]:
    """Model, loss of ours, and data, in which every third label is not counted, most of them in the first batch."""
    torch.manual_seed(stream_key(0, "initialisation"))
    inputs = torch.randn(SAMPLES, 6, dtype=torch.float64)
    places = kind in ("pixels", "shifted")
    targets = torch.randint(4, (SAMPLES, 3) if places else (SAMPLES,))
    if kind in ("shares", "squared", "binary"):
        targets = torch.rand(SAMPLES, 4, dtype=torch.float64)
        targets = targets / targets.sum(dim=1, keepdim=True) if kind == "shares" else targets
    else:
        masked = torch.rand(targets.shape) < 0.3
        masked[torch.from_numpy(SampleOrder(SAMPLES, 0).ids(0, 8))] = True
        targets[masked] = -100
    losses = {
        "ignored": CrossEntropy(),
        "weights": CrossEntropy(weight=WEIGHT),
        "smoothed": CrossEntropy(0.1, weight=WEIGHT),
        "pixels": CrossEntropy(weight=WEIGHT),
        "shares": CrossEntropy(weight=WEIGHT),
        "shifted": NextToken(shift=True),
        "binary": ModuleLoss(nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 0.5, 4.0]))),
        "squared": ModuleLoss(nn.MSELoss()),
        "torch": ModuleLoss(nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0, 0.25]), label_smoothing=0.2)),
    }
    model = Cells(last=kind == "shifted") if places else nn.Sequential(nn.Linear(6, 4), nn.Tanh())
    return model, losses[kind], ArrayDataset(inputs, targets)


def mean_of(kind: str, outputs: Tensor, targets: Tensor, *, smoothed: bool = True) -> Tensor:
    """The mean of a whole global batch, by torch."""
    if kind == "shifted":
        return F.cross_entropy(outputs[:, :-1].reshape(-1, 4), targets[:, 1:].reshape(-1))
    if kind == "binary":
        pos_weight = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
        return F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=pos_weight)
    if kind == "squared":
        return F.mse_loss(outputs, targets)
    weight = [0.5, 2.0, 1.0, 0.25] if kind == "torch" else None if kind == "ignored" else WEIGHT
    return F.cross_entropy(
        outputs,
        targets,
        weight=None if weight is None else torch.tensor(weight, dtype=torch.float64),
        label_smoothing={"smoothed": 0.1, "torch": 0.2}.get(kind, 0.0) if smoothed else 0.0,
    )


def measured(*, ordered: bool = False) -> dict[str, dict[str, Any]]:
    """Every problem, trained and measured on the ranks of this world."""
    with Runtime.open(precision="fp64") as runtime:
        return {kind: measured_kind(runtime, kind, ordered=ordered) for kind in KINDS}


def measured_kind(runtime: Runtime, kind: str, *, ordered: bool) -> dict[str, Any]:
    model, loss, data = problem(kind)
    tracker, losses = Rows(), list[float]()
    evaluation = EvaluationObserver(
        RowLog([tracker], num_samples=SAMPLES), train=data, validation=data, loss=loss, every=None, micro_batch_size=7
    )
    plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=4)
    run = made_run(
        runtime,
        model,
        loss,
        torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9),
        plan,
        data,
        lambda _: RATE,
        STEPS,
        log_every=1,
        ordered=ordered,
        observers=[AfterStep(lambda _, report: losses.append(report.mean_loss)), evaluation],
    )
    train(run)
    subset = FixedSubset(data, np.arange(SAMPLES), micro_batch_size=8)
    with measuring(run.module):
        mean = SubsetLoss(run.module, loss, subset.batches(runtime), reduce=runtime.sum_in_place)
        value, gradient = mean.value_and_gradient(mean.weights)
    settings = VarianceSettings(seed=0, batch_sizes=(1, 2, 4), replications=2)
    variance = measure_variance(run.module, loss, subset, runtime, settings, num_samples=SAMPLES)
    return {
        "losses": losses,
        "weights": [one.detach().numpy() for one in run.module.parameters()],
        "evaluation": tracker.rows[-1] if tracker.rows else None,
        "mean": value,
        "gradient": gradient.numpy(),
        "sq_norm": None if variance is None else variance.noise.grad_sq_norm,
    }


def reference(kind: str) -> dict[str, Any]:
    """The same in plain torch: one process, whole batches."""
    model, _, data = problem(kind)
    model = model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    losses = []
    for step in range(STEPS):
        ids = torch.from_numpy(SampleOrder(SAMPLES, 0).ids(step * BATCH, BATCH))
        loss = mean_of(kind, model(data.inputs[ids]), data.targets[ids])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = [one.detach().numpy().copy() for one in model.parameters()]
    outputs = model(data.inputs)
    total = mean_of(kind, outputs, data.targets)
    gradient = np.concatenate([one.numpy().ravel() for one in torch.autograd.grad(total, list(model.parameters()))])
    return {"losses": losses, "weights": weights, "mean": total.item(), "gradient": gradient, "outputs": outputs}


def test_the_mean_of_torch_is_trained_evaluated_and_measured_on_one_and_two_ranks(ranks):
    for world_size in (1, 2):
        found = ranks(world_size).run(measured)[0]
        for kind in KINDS:
            truth, own = reference(kind), found[kind]
            scale = max(abs(one).max() for one in truth["weights"])
            # float64, a few hundred terms of the size of the largest in each sum; 3 steps do not enlarge it.
            for ours, theirs in zip(own["weights"], truth["weights"], strict=True):
                assert np.abs(ours - theirs).max() <= 1e-12 * scale, (kind, world_size)
            assert own["losses"] == pytest.approx(truth["losses"], rel=1e-12), (kind, world_size)
            assert own["mean"] == pytest.approx(truth["mean"], rel=1e-12), kind
            size = np.linalg.norm(truth["gradient"])
            assert np.linalg.norm(own["gradient"] - truth["gradient"]) <= 1e-12 * size, kind
            assert own["sq_norm"] == pytest.approx(size**2, rel=1e-11), kind
            assert own["evaluation"]["eval/val_loss"] == pytest.approx(truth["mean"], rel=1e-12), kind
            assert_accuracy(kind, own["evaluation"], truth["outputs"])


def assert_accuracy(kind: str, row: dict[str, Any], outputs: Tensor) -> None:
    """Accuracy is a share of labels that count, whatever they weigh; its error is that of independent samples."""
    _, _, data = problem(kind)
    targets = data.targets
    if kind == "squared":
        assert "eval/val_accuracy" not in row
        return
    if kind == "binary":
        hits, counted = (outputs > 0) == (targets > 0.5), torch.ones_like(targets)
    elif kind == "shares":
        hits, counted = outputs.argmax(1) == targets.argmax(1), torch.ones(SAMPLES)
    elif kind == "shifted":
        targets = targets[:, 1:]
        hits, counted = outputs[:, :-1].argmax(-1) == targets, targets != -100
    else:
        hits, counted = outputs.argmax(1) == targets, targets != -100
    right = hits.view(SAMPLES, -1).sum(dim=1).double()
    whole = counted.view(SAMPLES, -1).sum(dim=1).double()
    share = float(right.sum() / whole.sum())
    spread = float(((right - share * whole) ** 2).sum())
    assert row["eval/val_accuracy"] == pytest.approx(share, rel=1e-14), kind
    error = math.sqrt(SAMPLES / (SAMPLES - 1) * spread) / float(whole.sum())
    assert row["eval/val_accuracy_stderr"] == pytest.approx(error, rel=1e-9), kind


def test_weights_of_labels_leave_an_ordered_sum_the_same_to_the_bit_on_any_number_of_ranks(ranks):
    one, two, three = (ranks(size).run(measured, ordered=True)[0] for size in (1, 2, 3))
    for kind in KINDS:
        for other in (two, three):
            assert all(
                np.array_equal(*pair) for pair in zip(one[kind]["weights"], other[kind]["weights"], strict=True)
            ), kind
