from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import ArrayDataset, Augmentation, DataError, MicroBatchLoader, Mixing
from largebatch.data.mixing import mixed_targets
from tests.unit.data.mixed_reference import mixed_sample

SEED, COUNT = 3, 15  # odd: a pair straddles the epochs
IMAGES = torch.randn(COUNT, 2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(COUNT) % 4
ORDER = SampleOrder(COUNT, SEED)
BOTH = Augmentation(SEED, mixing=Mixing(mixup=0.4, cutmix=1.0))


class OneByOne(Dataset[Any]):
    """The same samples as files, of which some cannot be read."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        if index in self.broken:
            raise OSError("a disk")
        return IMAGES[index], int(LABELS[index])


def loaded(dataset: Any, *sizes: int, start: int = 0, augment: Augmentation = BOTH, **options: Any) -> dict[int, Any]:
    """(input, targets, id) at each position, of one step in micro-batches of these sizes."""
    plan = BatchPlan(sum(sizes), 1, sizes, (0,) * len(sizes))
    loader = MicroBatchLoader(dataset, ORDER, plan, 0, augment=augment, seed=SEED, **options)
    found, position = {}, start
    for batch in loader.micro_batches(start, 1):
        skipped = {place for place, _ in batch.skipped}
        kept = [position + place for place in range(len(batch.asked)) if place not in skipped]
        assert len(batch.inputs) == len(batch.targets) == max(len(batch.ids), 1)  # a stand-in counts nothing
        found |= dict(zip(kept, zip(batch.inputs, batch.targets, batch.ids.tolist(), strict=False), strict=True))
        position += len(batch.asked)
    loader.close()
    return found


def test_each_sample_is_mixed_as_the_papers_say_over_the_seam_of_two_epochs() -> None:
    found = loaded(ArrayDataset(IMAGES, LABELS), 24)
    assert list(found) == list(range(24))
    for position, (image, targets, sample) in found.items():
        expected, own, other, share = mixed_sample(IMAGES.numpy(), position, ORDER, mixup=0.4, cutmix=1.0)
        assert sample == own
        np.testing.assert_allclose(image, expected, rtol=1e-15, atol=1e-15)
        assert targets.tolist() == [LABELS[own], LABELS[other], pytest.approx(share, abs=1e-15)]


@pytest.mark.parametrize("sizes", [(24,), (12, 12), (7, 9, 8), (1,) * 24, (23, 1)])
@pytest.mark.parametrize("start", [0, 5])
def test_no_cut_and_no_worker_changes_a_mixed_sample(sizes: tuple[int, ...], start: int) -> None:
    augment = replace(BOTH, flip=True, crop_padding=1, cutout=2)
    whole = loaded(ArrayDataset(IMAGES, LABELS), 24, start=start, augment=augment)
    workers: dict[str, Any] = {"num_workers": 1} if sizes == (7, 9, 8) else {}
    for dataset, options in ((ArrayDataset(IMAGES, LABELS), {}), (OneByOne(), workers)):
        parts = loaded(dataset, *sizes, start=start, augment=augment, **options)
        assert parts.keys() == whole.keys()
        assert all(all(map(torch.equal, parts[one][:2], whole[one][:2])) for one in whole)


def test_both_samples_of_a_pair_are_augmented_by_their_own_draws() -> None:
    plain = Augmentation(SEED, flip=True, crop_padding=2)
    found = loaded(ArrayDataset(IMAGES, LABELS), 7, augment=replace(plain, mixing=Mixing(mixup=1.0)))
    each = plain(IMAGES, np.arange(COUNT), np.zeros(COUNT, dtype=np.int64)).numpy()
    for position, (image, _, _) in found.items():
        np.testing.assert_allclose(image, mixed_sample(each, position, ORDER, mixup=1.0, cutmix=0.0)[0], rtol=1e-15)


def test_a_pair_in_one_micro_batch_loads_nothing_twice() -> None:
    asked: list[int] = []

    class Counted(OneByOne):
        def __getitem__(self, index: int) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    loaded(Counted(), 6, 4, 2)
    assert len(asked) == 12
    asked.clear()
    loaded(Counted(), 5, 7)
    assert len(asked) == 14  # the pair at the odd border, in both


@pytest.mark.parametrize("sizes", [(8,), (3, 5), (1,) * 8])
def test_the_neighbour_of_a_skipped_sample_stays_as_it_is(sizes: tuple[int, ...]) -> None:
    broken = int(ORDER.ids(3, 1)[0])
    found = loaded(OneByOne((broken,)), *sizes, skips=True)
    assert list(found) == [0, 1, 2, 4, 5, 6, 7]
    neighbour = int(ORDER.ids(2, 1)[0])
    assert torch.equal(found[2][0], IMAGES[neighbour])
    assert found[2][1].tolist() == [LABELS[neighbour], LABELS[neighbour], 1.0]
    whole = loaded(OneByOne(), 8)
    assert all(torch.equal(found[one][0], whole[one][0]) for one in (0, 1, 4, 5, 6, 7))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_of_mixup_have_the_moments_of_beta(alpha: float) -> None:
    ids = np.arange(40_000)
    rows = np.stack([ids, ids ^ 1])
    _, shares = Mixing(mixup=alpha).table(0, ids, np.zeros_like(ids), rows, (1,))
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(shares.mean()) == pytest.approx(0.5, abs=5 * (variance / len(ids)) ** 0.5)
    assert float(shares.var()) == pytest.approx(variance, abs=5 * (1 / 16 / len(ids)) ** 0.5)


def test_probability_and_switch_are_shares_of_the_samples() -> None:
    ids = np.arange(40_000)
    mixing = Mixing(mixup=1.0, cutmix=1.0, probability=0.6, switch=0.25)
    table, shares = mixing.table(0, ids, np.zeros_like(ids), np.stack([ids, ids ^ 1]), (1, 64, 64))
    is_blended, is_cut = table[:, 2] < 1, table[:, 4] > 0
    assert not (is_blended & is_cut).any()
    assert float(is_blended.double().mean()) == pytest.approx(0.45, abs=0.0125)  # 5 deviations
    # A box may have no pixel: with alpha 1 in fewer than 1 of 1,000 images of this size.
    assert float(is_cut.double().mean()) == pytest.approx(0.15, abs=0.01)
    areas = (table[:, 4] - table[:, 3]) * (table[:, 6] - table[:, 5])
    assert torch.equal(shares[is_cut], 1 - areas[is_cut] / 64**2)
    assert bool((shares[~is_blended & ~is_cut] == 1).all())


def test_numbers_for_each_class_are_kept_beside_each_other() -> None:
    table, shares = torch.tensor([[1.0, 0.0, 0.75, 0, 0, 0, 0]]).double(), torch.tensor([0.75]).double()
    several = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert mixed_targets(several, table, shares).tolist() == [[1, 0, 0, 0, 1, 1, 0.75]]


@pytest.mark.parametrize("targets", [torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, 4, 4, dtype=torch.int64)])
def test_targets_that_are_no_classes_are_refused(targets: torch.Tensor) -> None:
    with pytest.raises(DataError, match="mix classes"):
        mixed_targets(targets, torch.zeros(2, 7), torch.ones(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "of at least one"),
        ({"mixup": -0.1}, "0 \\(off\\) or more"),
        ({"mixup": float("inf")}, "of at least one"),
        ({"mixup": 1.0, "probability": 0.0}, "the first above 0"),
        ({"mixup": 1.0, "switch": 1.5}, "give probabilities"),
    ],
)
def test_numbers_outside_their_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixing(**options)
