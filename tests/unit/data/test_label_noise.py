"""A known share of labels is replaced, always the same ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from largebatch.data import ArrayDataset, FirstSamples, NoisyLabels, evaluation_batches
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import prepare
from tests.unit.composing import compose_run

IDS = np.arange(4000)


def labels_of(dataset, ids=IDS) -> torch.Tensor:
    return torch.cat([batch.targets for batch in evaluation_batches(dataset, ids, 1000)])


def clean() -> ArrayDataset:
    return ArrayDataset(torch.arange(4000.0)[:, None], torch.arange(4000) % 4, num_classes=4)


class OnDisk(Dataset):
    """The same, an item at a time."""

    def __len__(self) -> int:
        return 4000

    def __getitem__(self, index: int):
        return torch.tensor([float(index)]), index % 4


def test_the_planted_share_is_replaced_by_uniformly_random_classes():
    noisy = NoisyLabels(clean(), 0.4, num_classes=4, seed=0)
    before, after = labels_of(noisy.clean), labels_of(noisy)
    wrong = (before != after).double()
    assert float(wrong.mean()) == pytest.approx(0.4 * 3 / 4, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)
    counts = torch.bincount((after - before)[wrong.bool()] % 4, minlength=4)
    assert counts[0] == 0
    assert counts[1:].double() == pytest.approx(float(wrong.sum()) / 3, abs=4 * 400**0.5)
    assert torch.equal(noisy.fetch(IDS)[0], noisy.clean.fetch(IDS)[0])
    assert noisy.label_range == (0, 3)


def test_a_label_depends_on_seed_and_sample_alone():
    noisy = NoisyLabels(clean(), 0.4, num_classes=4, seed=0)
    expected = labels_of(noisy)
    assert torch.equal(labels_of(noisy, IDS[::-1].copy()), expected.flip(0))
    assert torch.equal(labels_of(NoisyLabels(OnDisk(), 0.4, num_classes=4, seed=0)), expected)
    few = NoisyLabels(FirstSamples(clean(), 100), 0.4, num_classes=4, seed=0)
    assert torch.equal(labels_of(few, IDS[:100]), expected[:100])
    assert torch.equal(torch.stack([noisy[number][1] for number in range(50)]), expected[:50])
    assert not torch.equal(labels_of(NoisyLabels(clean(), 0.4, num_classes=4, seed=1)), expected)


def test_in_a_run_training_labels_are_noisy_with_and_without_augmentation_and_validation_labels_are_not():
    plain = "+data.train_plain={_target_: largebatch.data.digits, split: train}"
    noisy, usual = (prepare(compose_run(f"data.label_noise={share}", "data=digits", plain), {}) for share in (0.5, 0))
    ids = np.arange(1437)
    assert 0.4 < float((labels_of(noisy.train, ids) != labels_of(usual.train, ids)).double().mean()) < 0.5
    assert torch.equal(labels_of(noisy.train, ids), labels_of(noisy.train_plain, ids))
    assert torch.equal(labels_of(noisy.train_plain.clean, ids), labels_of(usual.train, ids))
    assert torch.equal(labels_of(noisy.validation, ids[:360]), labels_of(usual.validation, ids[:360]))
    assert noisy.public["data"]["label_noise"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=noisy_quadratic", "model=quadratic", "loss=output"], "noisy_quadratic does not have"),
        (["data.label_noise=1.5"], "data.label_noise=1.5: must be at most 1."),
        (["data=linear_regression", "model=linear", "loss=squared_error"], "a target is torch.float32"),
    ],
)
def test_noise_where_there_are_no_classes_is_refused(overrides, said):
    with pytest.raises(ConfigError) as caught:
        prepare(compose_run("data.label_noise=0.5", *overrides), {})
    assert said in str(caught.value)
    assert "data.label_noise=" in str(caught.value)


def test_a_share_or_items_that_make_no_sense_are_refused():
    for share, num_classes in ((0.0, 4), (1.1, 4), (0.5, 1)):
        with pytest.raises(ValueError, match="share must be in"):
            NoisyLabels(clean(), share, num_classes=num_classes, seed=0)
    with pytest.raises(ValueError, match="items are a dict"):
        NoisyLabels([{"x": 1, "labels": 2}], 0.5, num_classes=4, seed=0)
    with pytest.raises(ValueError, match=r"shape \[2\]"):
        NoisyLabels([(1.0, torch.tensor([1, 2]))], 0.5, num_classes=4, seed=0)
