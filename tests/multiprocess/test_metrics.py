"""Metrics of an evaluation equal scikit-learn's over all samples at once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.random_keys import stream_key
from largebatch.data import ArrayDataset, masked_tokens
from largebatch.losses import CrossEntropy, Loss, ModuleLoss, NextToken
from largebatch.losses.metrics import F1, R2, MeanAbsoluteError, Perplexity, TopK, as_metric, for_loss
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import prepare
from largebatch.run.train_quietly import train_quietly
from tests.multiprocess.pool import RankPool
from tests.unit.composing import compose_run

HERE = "tests.multiprocess.test_metrics"
SMALL = ("batch.total=12", "length=4steps", "schedule.warmup=0ep", "observers.evaluation.micro=4", "precision=fp64")
KINDS = {
    "classes": ("+metrics.top2._target_=largebatch.losses.metrics.TopK", "+metrics.top2.k=2", "metric=f1",
                "+metrics.micro._target_=largebatch.losses.metrics.F1", "+metrics.micro.average=micro"),
    "tokens": ("metric=[perplexity,f1]", "loss=next_token", "+metrics.top2._target_=largebatch.losses.metrics.TopK",
               "+metrics.top2.k=2"),
    "numbers": ("metric=[mae,r2]", "loss=module", "loss._target_=torch.nn.MSELoss",
                f"+metrics.mine._target_={HERE}.RootMeanSquare"),
}  # fmt: skip


class RootMeanSquare:
    """As a user writes it."""

    higher_is_better = False

    def sums(self, outputs: Any, targets: Tensor) -> Tensor:
        squares = (outputs - targets).square().flatten(1)
        return torch.stack([squares.sum(1), torch.full_like(squares[:, 0], squares.shape[1])], dim=1)

    def value(self, sums: Tensor) -> float:
        return float(sums[0] / sums[1]) ** 0.5


class OneNumber(RootMeanSquare):
    def sums(self, outputs: Any, targets: Tensor) -> Tensor:
        return outputs.square().mean()


class Undecided(RootMeanSquare):
    higher_is_better = None  # type: ignore[assignment]


class Scores(nn.Module):
    """Logits of every position, or of the sample, with a buffer as users have them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.embed, self.head = kind, nn.Embedding(11, 5), nn.Linear(5, {"tokens": 11}.get(kind, 3))
        self.embed.requires_grad_(kind == "tokens")
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(inputs) if self.kind == "tokens" else inputs)
        return out


def data(kind: str, count: int, split: str) -> Any:
    if kind == "tokens":
        return masked_tokens(count, 8, 11, split)
    torch.manual_seed(count)
    inputs = torch.randn(count, 5)
    return ArrayDataset(inputs, torch.randn(count, 3) if kind == "numbers" else torch.randint(0, 3, (count,)))


def config(kind: str, count: int, *overrides: str) -> DictConfig:
    composed = compose_run(*SMALL, *KINDS[kind], "data=synthetic", *overrides)
    with open_dict(composed):
        composed.model = OmegaConf.create({"_target_": f"{HERE}.Scores", "kind": kind})
        for name, size in (("train", 40), ("validation", count)):
            node = {"_target_": f"{HERE}.data", "kind": kind, "count": size, "split": name}
            composed.data[name] = OmegaConf.create(node)
    return composed


def evaluated(kind: str, count: int, folder: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    trained = train_quietly(config(kind, count), folder)
    return trained.summary, {name: one.cpu().clone() for name, one in trained.model.state_dict().items()}


def truths(kind: str, dataset: Any, ids: Any, state: dict[str, Tensor]) -> dict[str, float]:
    """Of all samples at once, by scikit-learn."""
    model = Scores(kind).double()
    model.load_state_dict(state)
    inputs, targets = dataset.fetch(ids)
    with torch.no_grad():
        outputs = model(inputs.double() if inputs.is_floating_point() else inputs)
    if kind == "numbers":
        given = targets.double().numpy(), outputs.numpy()
        root = float(np.mean((given[0] - given[1]) ** 2) ** 0.5)
        return {
            "mae": sklearn.metrics.mean_absolute_error(*given),
            "r2": sklearn.metrics.r2_score(*given),
            "mine": root,
        }
    outputs, targets = outputs.flatten(0, -2), targets.flatten()
    outputs, targets = outputs[targets != -100], targets[targets != -100]
    labels, best = targets.numpy(), outputs.argmax(-1).numpy()
    known = {
        "top2": sklearn.metrics.top_k_accuracy_score(labels, outputs.numpy(), k=2, labels=np.arange(outputs.shape[1])),
        "f1": sklearn.metrics.f1_score(labels, best, average="macro"),
    }
    if kind == "classes":
        return known | {"micro": sklearn.metrics.f1_score(labels, best, average="micro")}
    return known | {"perplexity": float(torch.nn.functional.cross_entropy(outputs, targets).exp())}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("world_size", "count"), [(1, 21), (3, 21), (3, 2)])
def test_metrics_are_those_of_all_samples_at_once_on_any_world(
    ranks: Callable[[int], RankPool], tmp_path: Path, kind: str, world_size: int, count: int
):
    """21 samples in batches of 4; of 2 samples one of three ranks has none, and cannot know how many sums there are."""
    summary, state = ranks(world_size).run(evaluated, kind, count, str(tmp_path))[0]
    subset = SampleOrder(40, stream_key(0, "evaluated subset")).ids(0, count)
    train = truths(kind, data(kind, 40, "train"), subset, state)
    validation = truths(kind, data(kind, count, "validation"), np.arange(count), state)
    for name, value in validation.items():
        assert summary[f"eval/val_{name}"] == pytest.approx(value, rel=1e-9), name
        assert summary[f"eval/train_{name}"] == pytest.approx(train[name], rel=1e-9), name
        worse = value - train[name] if name in ("perplexity", "mae", "mine") else train[name] - value
        assert summary[f"gap/{name}"] == pytest.approx(worse, rel=1e-6, abs=1e-12), name


def total(metric: Any, loss: Loss, outputs: Tensor, targets: Tensor) -> float:
    metric = for_loss(metric, loss)
    parts = [metric.sums(*part).double().sum(0) for part in zip(outputs.split(3), targets.split(3), strict=True)]
    return float(metric.value(torch.stack(parts).sum(0)))


def test_labels_are_read_as_the_loss_reads_them():
    torch.manual_seed(3)
    logits, labels = torch.randn(7, 4, 5), torch.randint(0, 4, (7, 5))
    labels[0] = labels[3, 2] = -100
    flat, kept = logits.movedim(1, -1).reshape(-1, 4), labels.flatten() != -100
    expected = sklearn.metrics.top_k_accuracy_score(labels.flatten()[kept], flat[kept], k=2, labels=np.arange(4))
    for loss in (CrossEntropy(), ModuleLoss(nn.CrossEntropyLoss())):
        assert total(TopK(2), loss, logits, labels) == pytest.approx(expected)
    assert total(TopK(2), NextToken(), logits.movedim(1, -1), labels) == pytest.approx(expected)
    shifted = torch.nn.functional.pad(labels, (1, 0), value=7)[:, :5]  # position t predicts label t + 1
    kept[4::5] = False
    expected = sklearn.metrics.top_k_accuracy_score(labels.flatten()[kept], flat[kept], k=2, labels=np.arange(4))
    assert total(TopK(2), NextToken(shift=True), logits.movedim(1, -1), shifted) == pytest.approx(expected)
    probabilities = torch.nn.functional.one_hot(labels.clamp(min=0), 4).movedim(-1, 1).float()
    assert total(TopK(1), CrossEntropy(), logits, probabilities) == total(
        TopK(1), CrossEntropy(), logits, labels.clamp(min=0)
    )


@pytest.mark.parametrize("average", ["macro", "micro", "binary"])
def test_f1_of_binary_losses_is_that_of_scikit_learn(average: str):
    torch.manual_seed(4)
    width = 1 if average == "binary" else 4
    logits, given = torch.randn(11, width), (torch.rand(11, width) > 0.6).float()
    loss = ModuleLoss(nn.BCEWithLogitsLoss())
    expected = sklearn.metrics.f1_score(given.numpy(), (logits > 0).numpy(), average=average)
    assert total(F1(average), loss, logits, given) == pytest.approx(expected)  # type: ignore[arg-type]
    if average == "binary":
        two = torch.stack([-logits[:, 0], logits[:, 0]], 1)
        assert total(F1("binary"), CrossEntropy(), two, given[:, 0].long()) == pytest.approx(expected)


def test_r2_of_equal_targets_is_left_out_and_perplexity_has_no_overflow():
    assert np.isnan(total(R2(), CrossEntropy(), torch.randn(5), torch.full((5,), 0.1)))
    assert total(Perplexity(), CrossEntropy(), torch.tensor([[1e4, 0.0]]), torch.tensor([1])) == np.inf
    assert total(MeanAbsoluteError(), CrossEntropy(), torch.ones(3, 1), torch.zeros(3)) == 1.0


def test_an_object_of_torchmetrics_with_summed_states_is_exact_over_batches_and_others_are_refused():
    classification = pytest.importorskip("torchmetrics.classification")
    torch.manual_seed(5)
    logits, labels = torch.randn(11, 4), torch.randint(0, 4, (11,))
    metric = as_metric(classification.MulticlassF1Score(4))
    expected = sklearn.metrics.f1_score(labels, logits.argmax(-1), average="macro")
    assert total(metric, CrossEntropy(), logits, labels) == pytest.approx(expected, rel=1e-6)
    assert metric.higher_is_better
    with pytest.raises(ValueError, match="keeps preds by dim_zero_cat, not as a sum"):
        as_metric(classification.MulticlassAUROC(4))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((f"+metrics.mine._target_={HERE}.OneNumber",), "metrics.mine: sums returned [] for 2 samples"),
        ((f"+metrics.mine._target_={HERE}.Undecided",), "Undecided.higher_is_better=None: must be True or False."),
        (("+metrics.mine._target_=torch.nn.ReLU",), "ReLU has no sums and no value"),
        (("+metrics.mine.k=3",), "metrics.mine: names no metric."),
        (("+metrics.loss._target_=torch.nn.ReLU",), "metrics.loss=loss: eval/val_loss would be its key"),
        (("metric=top5", "metrics.top5.k=30"), "metrics.top5: TopK: k=30 of 10 classes"),
        (("metric=top5", "metrics.top5.k=0"), "k=0: must be 1 or more"),
        (("metric=f1", "metrics.f1.average=weighted"), "one of 'macro', 'micro', 'binary'"),
    ],
)
def test_what_is_no_metric_is_refused_before_the_run(overrides: tuple[str, ...], expected: str):
    with pytest.raises(ConfigError) as raised:
        prepare(compose_run("data=synthetic", "model=linear", "batch.total=12", "length=4steps", *overrides), {})
    assert expected in str(raised.value)
