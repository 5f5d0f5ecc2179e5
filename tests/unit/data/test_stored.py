"""Inputs as they are stored, and the function that completes them, make what the data set itself returns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from largebatch.data import (
    ArrayDataset,
    Augmentation,
    CheckedLabels,
    FirstSamples,
    NoisyLabels,
    Screen,
    ScreenedSamples,
    TokenWindows,
    image_folder,
)
from largebatch.data.samples import BadSampleError, form_of
from largebatch.data.stored import stored_form
from largebatch.losses import LabelRule

IDS = np.array([4, 0, 3])
SCALE: dict[str, Any] = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def images() -> ArrayDataset:
    pixels = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ArrayDataset(pixels, torch.arange(6) % 2, **SCALE)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda one: one,
        lambda one: FirstSamples(one, 5),
        lambda one: CheckedLabels(one, LabelRule(1)),
        lambda one: NoisyLabels(FirstSamples(one, 5), 0.5, num_classes=2, seed=3),
        lambda one: CheckedLabels(NoisyLabels(one, 0.5, num_classes=2, seed=3), LabelRule(1)),
        lambda one: ScreenedSamples(one, Screen(finite=True, form=form_of(one[0]))),
    ],
    ids=["plain", "first", "checked", "noisy", "both", "screened"],
)
def test_stored_images_completed_are_bitwise_those_of_the_set(wrap: Any) -> None:
    dataset = wrap(images())
    stored, complete = stored_form(dataset)
    (pixels, targets), (inputs, expected) = stored.fetch(IDS), dataset.fetch(IDS)
    assert pixels.dtype == torch.uint8
    assert complete is not None
    assert torch.equal(complete(pixels), inputs)
    assert torch.equal(targets, expected)
    assert len(stored) == len(dataset)
    assert torch.equal(complete(stored[3][0][None])[0], dataset[3][0])


def test_a_label_out_of_range_is_refused_in_the_stored_form_too() -> None:
    stored, _ = stored_form(CheckedLabels(images(), LabelRule(0)))
    with pytest.raises(ValueError, match="label"):
        stored.fetch(np.array([1]))


@pytest.mark.parametrize("is_dict", [False, True])
def test_a_screen_judges_stored_samples_as_the_model_takes_them(is_dict: bool) -> None:
    class Torn(ArrayDataset):
        def __getitem__(self, index: int) -> Any:
            pixels, label = super().__getitem__(index)
            pixels = pixels[:, :3] if index == 2 else pixels
            return ({"pixels": pixels, "place": torch.ones(2)}, label) if is_dict else (pixels, label)

        def stored_form(self) -> tuple[Any, Any]:
            stored = copy.copy(self)
            stored._normalise = None
            return stored, self._normalise

    torn = Torn(images().inputs, images().targets, **SCALE)
    stored, _ = stored_form(ScreenedSamples(torn, Screen(form=form_of(torn[0]))))
    pixels = stored[1][0]
    assert (pixels["pixels"] if is_dict else pixels).dtype == torch.uint8
    with pytest.raises(BadSampleError, match="most others"):
        stored[2]


def test_files_are_stored_as_bytes(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for label in "ab":
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            values = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
            Image.fromarray(values).save(folder / "one.png")
    files = image_folder(tmp_path, "train", image_size=4, max_bytes_in_memory=0, **SCALE)
    stored, complete = stored_form(files)
    assert stored[1][0].dtype == torch.uint8
    assert complete is not None
    assert torch.equal(complete(stored[1][0]), files[1][0])
    assert files[0][0].dtype == torch.float32


class Brighter(ArrayDataset):
    """A user's, which goes on from complete images."""

    def fetch(self, ids: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = super().fetch(ids)
        return inputs + 1, targets


class Delegating:
    """Passes on what it does not have itself."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_a_set_that_changes_what_it_inherits_or_passes_on_has_no_stored_form() -> None:
    brighter = Brighter(torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), **SCALE)
    for dataset in (
        brighter,
        FirstSamples(brighter, 5),
        Delegating(images()),
        TokenWindows(np.arange(9), context_length=2, vocab_size=9),
    ):
        stored, complete = stored_form(dataset)
        assert complete is None
        assert torch.equal(stored.fetch(np.array([1]))[0], dataset.fetch(np.array([1]))[0])


def test_draws_on_the_host_applied_elsewhere_are_the_augmentation() -> None:
    augment = Augmentation(seed=1, crop_padding=1, flip=True, cutout=2)
    inputs, _ = images().fetch(IDS)
    epochs = np.array([0, 1, 2])
    assert torch.equal(augment.apply(inputs, augment.draws(IDS, epochs)), augment(inputs, IDS, epochs))
