from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import ArrayDataset, Augmentation, DataError, MicroBatchData, MicroBatchLoader, evaluation_batches

pytestmark = pytest.mark.quick

NUM_SAMPLES = 23
ORDER = SampleOrder(NUM_SAMPLES, seed=7)


def numbered() -> ArrayDataset:
    """Input and target of sample i are i."""
    return ArrayDataset(torch.arange(NUM_SAMPLES).float()[:, None], torch.arange(NUM_SAMPLES))


def plans(global_batch_size: int) -> list[BatchPlan]:
    return [
        BatchPlan.solve(global_batch_size=global_batch_size, world_size=1),
        BatchPlan.solve(global_batch_size=global_batch_size, world_size=1, max_micro_batch_size=2),
        BatchPlan.solve(global_batch_size=global_batch_size, world_size=2, max_micro_batch_size=3),
        BatchPlan.solve(global_batch_size=global_batch_size, world_size=3, max_micro_batch_size=2),
        BatchPlan.pinned(global_batch_size=global_batch_size, world_size=2, micro_batch_size=3),
    ]


def step_by_step(plan: BatchPlan, samples_seen: int, num_steps: int, dataset: Any = None) -> list[list[MicroBatchData]]:
    """The micro-batches of all ranks, one list per step, in the order of the global batch."""
    steps: dict[int, list[MicroBatchData]] = {}
    for rank in range(plan.world_size):
        loader = MicroBatchLoader(dataset or numbered(), ORDER, plan, rank)
        for batch in loader.micro_batches(samples_seen, num_steps):
            steps.setdefault(batch.samples_seen, []).append(batch)
    return [steps[position] for position in sorted(steps)]


@pytest.mark.parametrize("global_batch_size", [5, 7, 23, 31])
@pytest.mark.parametrize("samples_seen", [0, 14, 21, 1000])
def test_all_ranks_together_consume_the_order_exactly(global_batch_size: int, samples_seen: int) -> None:
    for plan in plans(global_batch_size):
        steps = step_by_step(plan, samples_seen, num_steps=9)
        assert len(steps) == 9
        for number, micro_batches in enumerate(steps):
            position = samples_seen + number * global_batch_size
            ids, epochs, targets = (
                np.concatenate([np.asarray(getattr(batch, name)) for batch in micro_batches])
                for name in ("ids", "epochs", "targets")
            )
            assert ids.tolist() == ORDER.ids(position, global_batch_size).tolist()
            assert epochs.tolist() == [p // NUM_SAMPLES for p in range(position, position + global_batch_size)]
            assert targets.tolist() == ids.tolist()
            assert torch.cat([batch.inputs for batch in micro_batches]).flatten().tolist() == ids.tolist()
            assert [batch.index for batch in micro_batches] == list(range(len(plan.micro_batch_sizes)))
            assert [len(batch.ids) for batch in micro_batches] == list(plan.micro_batch_sizes)
            assert {batch.samples_seen for batch in micro_batches} == {position}


@pytest.mark.fault(47)
@pytest.mark.parametrize("plan", plans(5), ids=str)
def test_every_sample_comes_once_per_epoch_when_the_batch_does_not_divide_the_set(plan: BatchPlan) -> None:
    # 23 steps of 5 are exactly five epochs; the seams fall inside batches.
    seen = np.zeros((5, NUM_SAMPLES), dtype=int)
    for batch in (batch for step in step_by_step(plan, 0, num_steps=23) for batch in step):
        np.add.at(seen, (batch.epochs, batch.ids), 1)
    assert (seen == 1).all()


def test_a_run_resumed_at_any_step_continues_the_same_sequence() -> None:
    plan = BatchPlan.solve(global_batch_size=5, world_size=2, max_micro_batch_size=2)
    loader = MicroBatchLoader(numbered(), ORDER, plan, 1)
    whole = [(b.samples_seen, b.index, b.ids.tolist()) for b in loader.micro_batches(0, 14)]
    for step in range(15):
        rest = [(b.samples_seen, b.index, b.ids.tolist()) for b in loader.micro_batches(5 * step, 14 - step)]
        assert rest == [entry for entry in whole if entry[0] >= 5 * step]


def test_long_runs_of_large_and_small_micro_batches_equal_the_order() -> None:
    # Beyond any number of ids that a loader may ask the order for at once.
    order = SampleOrder(5000, seed=1)
    data = ArrayDataset(torch.zeros(5000, 1), torch.zeros(5000))
    for micro_batch_size, num_steps in ((7, 2000), (6000, 3)):
        plan = BatchPlan.pinned(global_batch_size=2 * micro_batch_size, world_size=1, micro_batch_size=micro_batch_size)
        loader = MicroBatchLoader(data, order, plan, 0)
        ids = np.concatenate([batch.ids for batch in loader.micro_batches(3, num_steps)])
        assert np.array_equal(ids, order.ids(3, num_steps * 2 * micro_batch_size))


class CountsFetches(ArrayDataset):
    """Remembers the ids of every fetch."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(NUM_SAMPLES, 1), torch.zeros(NUM_SAMPLES))
        self.fetched: list[int] = []

    def fetch(self, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        self.fetched.append(len(ids))
        return super().fetch(ids)


def test_micro_batches_are_fetched_one_at_a_time_when_they_are_asked_for() -> None:
    data = CountsFetches()
    plan = BatchPlan.solve(global_batch_size=1000, world_size=1, max_micro_batch_size=10)
    batches = MicroBatchLoader(data, ORDER, plan, 0).micro_batches(0, 10**9)
    assert data.fetched == []
    next(batches)
    next(batches)
    assert data.fetched == [10, 10]


def test_augmentation_gets_each_sample_with_its_id_and_epoch() -> None:
    images = torch.rand(NUM_SAMPLES, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    augment = Augmentation(seed=5, crop_padding=2, flip=True)
    data = ArrayDataset(images, torch.arange(NUM_SAMPLES))
    for plan in plans(7):
        for rank in range(plan.world_size):
            loader = MicroBatchLoader(data, ORDER, plan, rank, augment=augment)
            for batch in loader.micro_batches(20, 4):
                assert torch.equal(batch.inputs, augment(images[batch.ids], batch.ids, batch.epochs))


def test_evaluation_yields_every_id_once_in_order_and_without_epochs() -> None:
    ids = np.array([4, 2, 22, 0, 1, 9, 7], dtype=np.int64)
    for size, expected in ((3, [3, 3, 1]), (7, [7]), (100, [7])):
        batches = list(evaluation_batches(numbered(), ids, size))
        assert [len(batch.targets) for batch in batches] == expected
        assert torch.cat([batch.targets for batch in batches]).tolist() == ids.tolist()
        assert [batch.index for batch in batches] == list(range(len(expected)))
    assert list(evaluation_batches(numbered(), ids[:0], 3)) == []


def test_an_iterator_ends_with_an_error_when_another_one_has_begun() -> None:
    plan = BatchPlan.solve(global_batch_size=2, world_size=1)
    loader = MicroBatchLoader(numbered(), ORDER, plan, 0)
    first = loader.micro_batches(0, 3)
    next(first)
    unused = loader.micro_batches(0, 3)
    last = loader.micro_batches(0, 3)
    for stale in (first, unused):
        with pytest.raises(RuntimeError, match="one iterator at a time"):
            next(stale)
    assert len(list(last)) == 3


class Items(Dataset[Any]):
    """A map-style set from a function of the index."""

    def __init__(self, item: Any, length: int = NUM_SAMPLES) -> None:
        self.item = item
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


def load_one(item: Any, **options: Any) -> MicroBatchData:
    plan = BatchPlan.solve(global_batch_size=4, world_size=1)
    return next(MicroBatchLoader(Items(item), ORDER, plan, 0, **options).micro_batches(0, 1))


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target"])
def test_items_are_pairs_or_dicts_with_one_key_of_targets(key: str) -> None:
    ids = ORDER.ids(0, 4).tolist()
    pair = load_one(lambda i: (torch.full((2,), float(i)), i))
    assert pair.inputs.tolist() == [[i, i] for i in ids]
    assert pair.targets.tolist() == ids
    named = load_one(lambda i: {"input_ids": torch.tensor([i]), "attention_mask": torch.tensor([1]), key: i})
    assert isinstance(named.inputs, dict)
    assert {name: value.tolist() for name, value in named.inputs.items()} == {
        "input_ids": [[i] for i in ids],
        "attention_mask": [[1]] * 4,
    }
    assert named.targets.tolist() == ids


def test_augmentation_reaches_the_images_of_a_dict() -> None:
    augment = Augmentation(seed=0, cutout=2)
    image = torch.ones(1, 4, 4)
    batch = load_one(lambda i: {"pixel_values": image, "mask": torch.ones(3), "label": i}, augment=augment)
    expected = augment(image.expand(4, -1, -1, -1), batch.ids, batch.epochs)
    assert torch.equal(batch.inputs["pixel_values"], expected)
    assert torch.equal(batch.inputs["mask"], torch.ones(4, 3))
    with pytest.raises(DataError, match="0 of the inputs mask are images"):
        load_one(lambda i: {"mask": torch.ones(3), "label": i}, augment=augment)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (lambda i: torch.ones(3), "is Tensor. An item"),
        (lambda i: (torch.ones(3), 1, 2), r"\(Tensor, Tensor, Tensor\) once collated"),
        (lambda i: (torch.ones(3), "cat"), r"Sample \d+ has the text 'cat' as its target"),
        (lambda i: {"x": torch.ones(3)}, "a dict with the keys x"),
        (lambda i: {"x": torch.ones(3), "label": 1, "labels": 1}, "exactly one of the keys"),
        (
            lambda i: (torch.ones(2 if i == 20 else 3), 1),
            r"float32 \([23],\).*float32 \([23],\)",
        ),
        (lambda i: (object(), 1), "cannot be collated"),
    ],
)
def test_items_of_another_form_are_refused(item: Any, message: str) -> None:
    plan = BatchPlan.solve(global_batch_size=NUM_SAMPLES, world_size=1)
    with pytest.raises(DataError, match=message):
        list(MicroBatchLoader(Items(item), ORDER, plan, 0).micro_batches(0, 1))


def test_a_bad_sample_is_named_with_its_error() -> None:
    bad = int(ORDER.ids(0, 4)[2])

    def item(index: int) -> tuple[float, int]:
        if index == bad:
            raise OSError("disk on fire")
        return 0.0, index

    with pytest.raises(DataError, match=f"Sample {bad} cannot be loaded: OSError: disk on fire") as caught:
        load_one(item)
    assert isinstance(caught.value.__cause__, OSError)


def noisy(index: int) -> tuple[torch.Tensor, int]:
    return torch.tensor([float(torch.rand(())), np.random.rand(), random.random()], dtype=torch.float64), index  # noqa: NPY002


def test_items_draw_from_global_generators_by_epoch_and_id_and_leave_them_as_they_were() -> None:
    plan = BatchPlan.solve(global_batch_size=NUM_SAMPLES, world_size=1, max_micro_batch_size=4)
    draws: dict[tuple[int, int], list[float]] = {}
    generators = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    for batch in MicroBatchLoader(Items(noisy), ORDER, plan, 0, seed=1).micro_batches(0, 2):
        for epoch, sample, row in zip(batch.epochs, batch.ids, batch.inputs, strict=True):
            draws[epoch, sample] = row.tolist()
    assert torch.equal(torch.random.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert (np.random.get_state()[1] == generators[2]).all()  # noqa: NPY002
    assert len({value for row in draws.values() for value in row}) == 2 * NUM_SAMPLES * 3
    other_plan = BatchPlan.solve(global_batch_size=5, world_size=2)
    for rank in range(2):
        for batch in MicroBatchLoader(Items(noisy), ORDER, other_plan, rank, seed=1).micro_batches(10, 5):
            for epoch, sample, row in zip(batch.epochs, batch.ids, batch.inputs, strict=True):
                assert row.tolist() == draws[epoch, sample]
    changed = next(MicroBatchLoader(Items(noisy), ORDER, plan, 0, seed=2).micro_batches(0, 1))
    assert changed.inputs[0].tolist() != draws[0, int(changed.ids[0])]


def test_evaluation_items_are_the_same_every_time() -> None:
    ids = np.arange(NUM_SAMPLES)
    first, second = (list(evaluation_batches(Items(noisy), ids, size)) for size in (4, 23))
    assert torch.equal(torch.cat([batch.inputs for batch in first]), second[0].inputs)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[int]:
        yield 1


PLAN = BatchPlan.solve(global_batch_size=2, world_size=2)


@pytest.mark.parametrize(
    ("dataset", "order", "rank", "options", "message"),
    [
        (numbered(), SampleOrder(22), 0, {}, "covers 22 samples, but the data set has 23"),
        (numbered(), ORDER, 2, {}, "rank=2: the plan has ranks 0 to 1"),
        (numbered(), ORDER, -1, {}, "rank=-1"),
        (numbered(), ORDER, 0, {"num_workers": 4}, "num_workers=4 has no effect.*Set num_workers=0"),
        (numbered(), ORDER, 0, {"num_workers": -1}, "num_workers=-1"),
        (numbered(), ORDER, 0, {"timeout_s": 5}, "timeout_s=5 has no effect without workers"),
        (Endless(), ORDER, 0, {}, "map-style"),
        ([], ORDER, 0, {}, "covers 23 samples, but the data set has 0"),
    ],
)
def test_settings_that_contradict_the_data_are_refused(
    dataset: Any, order: SampleOrder, rank: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MicroBatchLoader(dataset, order, PLAN, rank, **options)


def test_steps_that_wait_on_the_host_for_no_gpu_are_refused() -> None:
    with pytest.raises(ValueError, match="keeps_steps=True has no effect"):
        MicroBatchLoader(numbered(), ORDER, PLAN, 0, keeps_steps=True)


@pytest.mark.parametrize(("samples_seen", "num_steps"), [(-1, 1), (0, -1)])
def test_negative_positions_are_refused_at_once(samples_seen: int, num_steps: int) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        MicroBatchLoader(numbered(), ORDER, PLAN, 0).micro_batches(samples_seen, num_steps)
    with pytest.raises(ValueError, match="micro_batch_size=0"):
        evaluation_batches(numbered(), np.arange(3), 0)
