"""Items as their ecosystems mean them, and samples that cannot be used. Truths: transformers' collator, plain torch."""

from __future__ import annotations

import math
from collections import OrderedDict, UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from largebatch.data import (
    DataError,
    Screen,
    ScreenedSamples,
    as_sample,
    changing_samples,
    form_of_most,
    notes_of_items,
)
from largebatch.data.items import KeyedItems
from largebatch.data.samples import BadSampleError, form_of, text_keys

pytestmark = pytest.mark.quick


class Made:
    """A map-style set of what a function makes of the number of a sample."""

    def __init__(self, make: Callable[[int], Any], count: int = 24) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def loaded(make: Callable[[int], Any], ids: tuple[int, ...] = (3, 1, 2), *, skips: bool = False) -> tuple[Any, ...]:
    return KeyedItems(Made(make), seed=0, stream="item", augment=None, skips=skips).load([(0, one) for one in ids])


ROWS = [
    {"text": f"row {i}", "input_ids": [i, i + 1, 7], "mask": [1.0, 0.5, i], "labels": [i, -100, 2]} for i in range(4)
]


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict])
def test_a_dict_of_lists_is_what_the_collator_of_transformers_makes_of_it(kind: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="its collator is the truth")
    inputs, targets, _ = loaded(lambda i: kind(ROWS[i]))
    bare = [{key: value for key, value in ROWS[i].items() if key != "text"} for i in (3, 1, 2)]
    expected = transformers.default_data_collator(bare)
    assert set(inputs) == {"input_ids", "mask"}
    for key, value in {**inputs, "labels": targets}.items():
        assert value.dtype == expected[key].dtype
        assert torch.equal(value, expected[key])


def test_a_data_set_of_datasets_with_lists_and_text_is_used_and_its_text_told() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({key: [row[key] for row in ROWS] for key in ROWS[0]})
    inputs, targets, _ = KeyedItems(rows, seed=0, stream="item", augment=None).load([(0, 2)])
    assert inputs["input_ids"].tolist() == [[2, 3, 7]]  # type: ignore[index]
    assert targets.tolist() == [[2, -100, 2]]
    assert notes_of_items(rows, seed=0) == [
        "text hold text, which no model takes: dropped.",
        "input_ids, mask, labels hold lists of numbers: read as tensors.",
    ]


def test_numbers_arrays_and_tensors_are_collated_as_torch_does() -> None:
    items = [(np.full(3, i, np.float64), np.int32(i)) for i in range(4)]
    inputs, targets, _ = loaded(lambda i: items[i])
    expected = default_collate([items[i] for i in (3, 1, 2)])
    assert (inputs.dtype, targets.dtype) == (expected[0].dtype, expected[1].dtype)
    assert torch.equal(inputs, expected[0])
    assert torch.equal(targets, expected[1])


@pytest.mark.parametrize(
    ("item", "keys"),
    [
        ({"x": 1, "name": "a", "path": b"b", "tokens": ["a", "b"], "label": 0}, ["name", "path", "tokens"]),
        (({"x": 1, "name": "a"}, 0), ["name"]),
        ((torch.ones(2), 0), []),
        ({"x": [1, 2], "label": "cat"}, []),
        (None, []),
    ],
)
def test_text_among_the_inputs_is_named(item: Any, keys: list[str]) -> None:
    assert text_keys(item) == keys
    assert any("hold text" in note for note in notes_of_items(Made(lambda i: item), seed=0)) == bool(keys)


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (None, "is None: the data set returned nothing"),
        ({"x": torch.ones(2), "extra": None, "label": 1}, "holds None: extra"),
        ((torch.ones(2), None), "holds None: target"),
        ((torch.ones(2), "cat"), "has the text 'cat' as its target: number the classes from 0"),
        ({"x": torch.ones(2), "label": ["cat", "dog"]}, r"has the text \['cat', 'dog'\] as its target"),
    ],
)
def test_what_no_batch_can_hold_is_named_with_its_sample_and_skipped_on_request(item: Any, why: str) -> None:
    good = {"x": torch.zeros(2), "extra": 1, "label": 1} if isinstance(item, dict) else (torch.zeros(2), 1)
    with pytest.raises(DataError, match=rf"^Sample 1 {why}.*data\.on_bad_sample=skip\.$"):
        loaded(lambda i: item if i == 1 else good)
    _, targets, skipped = loaded(lambda i: item if i == 1 else good, skips=True)
    assert len(targets) == 2
    assert [place for place, _ in skipped] == [1]


@pytest.mark.parametrize(
    "item",
    [
        {"x": [[1, 2], [3]], "label": 1},  # ragged
        (object(), 1),
        (torch.ones(3), 1, 2),
        torch.ones(3),
        {"x": torch.ones(3)},
        {"x": {1, 2}, "label": 0},
        (torch.ones(2, dtype=torch.float32), [torch.ones(1), torch.ones(2)]),
    ],
)
def test_any_other_item_is_refused_with_its_number_and_form(item: Any) -> None:
    with pytest.raises(DataError, match=r"Samples? \d"):
        loaded(lambda i: item)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("sample", "why"),
    [
        ((torch.tensor([0.0, NAN]), 1), "NaN or infinity: input"),
        ((np.array([0.0, -INF]), 1), "NaN or infinity: input"),
        (({"a": torch.ones(2), "b": torch.tensor([INF, 0])}, 1), "NaN or infinity: b"),
        ({"a": torch.ones(2), "label": NAN}, "NaN or infinity: target"),
        ((torch.ones(2), torch.tensor([NAN])), "NaN or infinity: target"),
    ],
)
def test_a_screen_holds_back_what_is_not_finite(sample: Any, why: str) -> None:
    with pytest.raises(BadSampleError, match=why):
        Screen(finite=True).require_good(sample)


@pytest.mark.parametrize(
    "sample",
    [
        (torch.ones(2), 4),
        (torch.ones(2), np.int64(0)),
        (torch.ones(2), True),
        (torch.ones(2), 7.5),
        (torch.ones(2, dtype=torch.int64), torch.tensor([0, -100, 4])),
        {"a": np.ones(2), "label": np.float32(9)},
    ],
)
def test_a_screen_lets_finite_numbers_of_every_type_pass(sample: Any) -> None:
    Screen(finite=True).require_good(sample)


def test_the_form_of_most_decides_which_sample_is_the_odd_one() -> None:
    odd = {0: (torch.ones(4), 1), 5: (torch.ones(3).double(), 1), 7: {"x": 1, "label": 0}, 9: None}

    def make(i: int) -> Any:
        if i == 11:
            raise OSError("gone")
        return odd.get(i, (torch.full((3,), float(i)), i % 2))

    form = form_of_most(Made(make), seed=0)
    assert form == form_of(as_sample((torch.ones(3), 0))) == "(Tensor float32 (3,), number)"
    screened = ScreenedSamples(Made(make), Screen(finite=True, form=form))
    good = []
    for i in range(24):
        try:
            good.append(int(screened[i][0][0]))
        except (BadSampleError, OSError):  # noqa: PERF203
            assert i in (*odd, 11)
    assert good == [i for i in range(24) if i not in (*odd, 11)]
    assert form_of_most(Made(lambda i: 1 / 0), seed=0) is None


# What augments, and what does not; `torch.rand` and the others are seeded per sample and epoch.
CHANGES: dict[str, Callable[[int], Any]] = {
    "crop": lambda i: (torch.arange(4.0).roll(int(torch.randint(4, ()))), i),
    "flip": lambda i: (torch.arange(3.0).flip(0) if torch.rand(()) < 0.5 else torch.arange(3.0), i),
    "numpy": lambda i: (np.random.normal(size=2), i),  # noqa: NPY002
    "mixed labels": lambda i: (torch.ones(2), float(torch.rand(()))),
    "in a dict": lambda i: {"x": torch.rand(2), "label": i},
}
FIXED: dict[str, Callable[[int], Any]] = {
    "plain": lambda i: (torch.full((2,), float(i)), i),
    "NaN": lambda i: (torch.tensor([NAN, i]), i),
    "generator of its own key": lambda i: (torch.randn(2, generator=torch.Generator().manual_seed(i)), i),
    "text": lambda i: {"x": [i, 2], "name": "a", "label": i},
    "broken": lambda i: (_ for _ in ()).throw(OSError("gone")),
}


@pytest.mark.parametrize("name", [*CHANGES, *FIXED])
def test_a_set_that_augments_by_itself_is_found_whatever_the_seed(name: str) -> None:
    make = (CHANGES | FIXED)[name]
    before = torch.random.get_rng_state()
    for seed in range(20):
        assert bool(changing_samples(Made(make), seed=seed)) == (name in CHANGES), seed
        # Under one key what the run seeds comes back.
        assert changing_samples(Made(make), seed=seed, epochs=(0, 0)) == []
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_generator_of_the_sets_own_is_found_under_one_key() -> None:
    own = torch.Generator().manual_seed(0)
    assert changing_samples(Made(lambda i: (torch.rand(2, generator=own), i)), seed=0, epochs=(0, 0))


def test_a_set_in_memory_that_augments_in_fetch_is_found() -> None:
    class InMemory(Made):
        def fetch(self, ids: Any) -> Any:
            return torch.rand(len(ids), 2), torch.from_numpy(ids)

    assert len(changing_samples(InMemory(lambda i: None), seed=0)) == 8


def test_whole_and_other_numbers_of_python_are_one_form_as_in_a_tensor_of_torch() -> None:
    dataset = Made(lambda i: (torch.ones(3), 1 if i % 4 else 0.5))
    screened = ScreenedSamples(dataset, Screen(form=form_of_most(dataset, seed=0)))
    assert [screened[i][1] for i in range(8)] == [0.5, 1, 1, 1, 0.5, 1, 1, 1]
