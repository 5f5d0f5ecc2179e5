"""Conditions between training and evaluation: closed forms, the same on any number of ranks, without a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from largebatch.data import ArrayDataset, Augmentation, NoisyLabels, masked_tokens
from largebatch.diagnostics.gap.conditions.measurement import Conditions, measure_conditions
from largebatch.diagnostics.gap.conditions.passes import GapData, GapSettings
from largebatch.distributed.runtime import Runtime
from largebatch.losses import CrossEntropy, NextToken, SquaredError
from largebatch.models import GPT, MLP, ConvNet
from tests.restless import Restless, bits

SETTINGS = GapSettings(seed=3, ghost=4, draws=2, micro_batch_size=7)


def problem(kind: str) -> tuple[nn.Module, tuple[Any, Any], GapData]:
    torch.manual_seed(1)
    ids, validation_ids = np.random.default_rng(0).permutation(40)[:22], np.arange(9)
    if kind == "tokens":
        sets = [masked_tokens(40, 6, 7, split) for split in ("train", "validation")]
        model = GPT(7, 6, num_layers=1, num_heads=2, width=8, dropout=0.3)
        return model, (NextToken(), NextToken()), GapData(None, *sets, ids, validation_ids)
    plain, validation = (ArrayDataset(torch.randn(40, 1, 8, 8), torch.randint(0, 3, (40,))) for _ in range(2))
    noisy = NoisyLabels(plain, 0.5, num_classes=3, seed=0)
    model = nn.Sequential(ConvNet(5, 1, width=2), nn.Dropout(0.2), nn.Linear(5, 3))
    with torch.no_grad():  # statistics as of a trained model
        model(torch.randn(16, 1, 8, 8) + 0.3)
    data = GapData(None, noisy, validation, ids, validation_ids, Augmentation(0, crop_padding=1, flip=True), plain)
    return model, (CrossEntropy(0.1), CrossEntropy()), data


def measure(kind: str) -> dict[str, Any]:
    with Runtime.open(precision="fp64") as runtime:
        model, losses, data = problem(kind)
        return sums(measure_conditions(model.double(), losses, data, runtime, SETTINGS))


def sums(found: Conditions) -> dict[str, Any]:
    conditions = {"printed": found.printed, **dict(found.changes), "validation": found.validation}
    return {
        f"{name} {quantity}": getattr(one, quantity)
        for name, one in conditions.items()
        if one is not None
        for quantity in ("loss", "units", "correct")
    }


@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_any_number_of_ranks_measures_the_same_samples_in_the_same_micro_batches(ranks, kind):
    """22 samples in 6 micro-batches of training and 4 of evaluation, and 9 in 2: not all of 4 ranks have one."""
    (alone,) = ranks(1).run(measure, kind)
    expected = {"images": 6, "tokens": 3}[kind] + (kind == "images")  # conditions that differ
    assert len({values.tobytes() for name, values in alone.items() if name.endswith("loss")}) == expected
    for world_size in (2, 4):
        for found in ranks(world_size).run(measure, kind):
            assert found.keys() == alone.keys()
            for name, values in found.items():
                np.testing.assert_allclose(values, alone[name], rtol=1e-10, atol=1e-12, err_msg=name)


def conditions(
    module: nn.Module, inputs: Any, *, losses: Any = None, targets: Any = None, augment: Any = None, **options: Any
) -> dict[str, Any]:
    """What changes, by name, for all samples of one set, which is the validation set, too."""
    runtime = Runtime.open(precision="fp64")
    values = torch.as_tensor(inputs, dtype=torch.float64)
    dataset = ArrayDataset(values, torch.zeros_like(values) if targets is None else targets)
    ids = np.arange(len(values))
    settings = {"seed": 0, "ghost": len(values), "draws": 1, "micro_batch_size": 5, **options}
    try:
        found = measure_conditions(
            module.double(),
            losses or (SquaredError(), SquaredError()),
            GapData(None, dataset, dataset, ids, ids, augment),
            runtime,
            GapSettings(**settings),
        )
    finally:
        runtime.close()
    return {"printed": found.printed, **dict(found.changes), "validation": found.validation}


X = torch.tensor([[0.5], [2.0], [-1.0], [3.0], [1.0], [0.0]], dtype=torch.float64)


def test_stale_statistics_have_their_closed_form():
    """Loss x'^2 / 2 with x' = (x - mean) / sqrt(variance + eps): of the batch, fresh, and as planted."""
    norm = nn.BatchNorm1d(1, affine=False)
    norm.running_mean.fill_(0.25)
    norm.running_var.fill_(4.0)
    found = conditions(norm, X)

    def loss(mean: Any, variance: Any) -> Any:
        return ((X - mean).square() / (variance + norm.eps) / 2).squeeze().numpy()

    assert found["augmentation"] is None
    assert found["label smoothing"] is None
    assert found["printed"].loss == pytest.approx(loss(X.mean(), X.var(correction=0)))
    assert found["train mode"].loss == pytest.approx(loss(X.mean(), X.var(correction=1)))
    assert found["stale statistics"].loss == pytest.approx(loss(0.25, 4.0))
    assert found["validation"].loss == pytest.approx(loss(0.25, 4.0))
    assert (norm.running_mean.item(), norm.running_var.item(), norm.momentum) == (0.25, 4.0, 0.1)


def test_batch_statistics_are_those_of_micro_batches_of_the_ghost_size():
    """Of two different values, normalised by their own mean and variance, each is 1 or -1."""
    found = conditions(nn.BatchNorm1d(1, affine=False, eps=1e-12), X, ghost=2, draws=3)
    assert found["printed"].loss == pytest.approx(np.full(6, 0.5), abs=1e-9)
    assert found["train mode"].loss != pytest.approx(np.full(6, 0.5), abs=0.1)


def test_dropout_has_its_known_effect():
    """Kept with probability 1 - p and divided by it, x^2 becomes x^2 / (1 - p) in the mean."""
    found = conditions(nn.Dropout(0.5), torch.full((64, 1), 3.0), draws=200)
    assert found["train mode"].loss == pytest.approx(np.full(64, 4.5))
    # One draw has 4 times its mean or 0: a standard deviation of 9. A mean of 64 * 200: 0.08.
    assert found["printed"].mean_loss == pytest.approx(9.0, abs=0.4)
    assert len(set(found["printed"].loss)) > 1, "each sample has its own draws"
    assert found["stale statistics"] is None


def test_augmentation_has_its_known_effect_and_shows_views_that_training_did_not():
    epochs: list[int] = []

    def shift(inputs: torch.Tensor, ids: Any, of_epochs: Any) -> torch.Tensor:
        epochs.extend(of_epochs.tolist())
        return inputs + torch.from_numpy(ids)[:, None]

    found = conditions(nn.Identity(), X, augment=shift, draws=2, ghost=4)
    assert found["printed"].loss == pytest.approx(((X[:, 0] + torch.arange(6)).square() / 2).numpy())
    assert found["augmentation"].loss == pytest.approx((X[:, 0].square() / 2).numpy())
    assert found["train mode"] is None
    assert found["stale statistics"] is None
    assert len(set(epochs)) == 2
    assert min(epochs) > 10**9


def test_label_smoothing_is_a_part_of_the_loss_and_not_of_the_accuracy():
    logits, targets = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    found = conditions(nn.Identity(), logits, losses=(CrossEntropy(0.3), CrossEntropy()), targets=targets)
    assert found["printed"].loss == pytest.approx(CrossEntropy(0.3).loss_per_sample(logits, targets).numpy())
    assert found["label smoothing"].loss == pytest.approx(CrossEntropy().loss_per_sample(logits, targets).numpy())
    assert found["label smoothing"].correct is found["printed"].correct


def test_a_model_without_modes_on_data_without_augmentation_has_nothing_but_a_gap():
    model = MLP(4, 3, hidden=[5], dropout=0.0)
    targets = torch.tensor([0, 1, 2] * 10)
    found = conditions(
        model, torch.randn(30, 4), losses=(CrossEntropy(),) * 2, targets=targets, ghost=7, draws=3, micro_batch_size=11
    )
    assert [name for name, one in found.items() if one is not None] == ["printed", "validation"]
    assert found["printed"].loss == pytest.approx(found["validation"].loss, rel=1e-12)


@pytest.mark.parametrize("fails_at", [-1, 1, 5, 20])
def test_weights_statistics_modes_and_generators_are_bit_identical_afterwards(fails_at):
    module = Restless().double()
    module(torch.randn(8, 3, dtype=torch.float64))
    module.second.eval()
    module.calls, module.fails_at = 0, fails_at
    before = bits(module)
    options = {"losses": (CrossEntropy(),) * 2, "targets": torch.tensor([0, 1] * 12), "ghost": 5, "draws": 2}
    if fails_at == -1:
        conditions(module, torch.randn(24, 3, generator=torch.Generator().manual_seed(0)), **options)
        assert module.calls > 20
    else:
        with pytest.raises(RuntimeError, match="as asked"):
            conditions(module, torch.randn(24, 3, generator=torch.Generator().manual_seed(0)), **options)
    assert bits(module) == before
