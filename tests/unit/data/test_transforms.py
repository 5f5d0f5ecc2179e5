from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.data import (
    ArrayDataset,
    Augmentation,
    DataError,
    MicroBatchLoader,
    NoisyLabels,
    SeveralViews,
    TransformedSamples,
)
from largebatch.data.array import ImageNormalisation
from largebatch.distributed.generators import preserved_generators, seed_generators
from tests.unit.data.own_transforms import Jitter, rotated

SEED, COUNT = 3, 9
PIXELS = torch.randint(0, 256, (COUNT, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(COUNT) % 4
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]
IMAGES = ArrayDataset(PIXELS, LABELS, mean=MEAN, std=STD)
VECTORS = ArrayDataset(torch.randn(COUNT, 5, generator=torch.Generator().manual_seed(1)), LABELS)
ORDER = SampleOrder(COUNT, SEED)


def loaded(dataset: Any, *sizes: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the first step, in micro-batches of these sizes."""
    plan = BatchPlan(sum(sizes), 1, sizes, (0,) * len(sizes))
    loader = MicroBatchLoader(dataset, ORDER, plan, 0, seed=SEED, **options)
    batches: list[Any] = list(loader.micro_batches(0, 1))
    loader.close()
    return torch.cat([one.inputs for one in batches]), torch.cat([one.targets for one in batches])


def under_key(position: int, call: Any) -> Any:
    """What `call` gives under the key of the sample at this position, as the loader's documentation has it."""
    with preserved_generators():
        sample = int(ORDER.ids(position, 1)[0])
        seed_generators(stream_key(SEED, "item", position // COUNT, sample))
        return call(sample)


@pytest.mark.parametrize("dataset", [IMAGES, VECTORS])
def test_a_transform_is_keyed_by_the_sample_alone(dataset: ArrayDataset) -> None:
    changed, jitter, normalise = TransformedSamples(dataset, Jitter()), Jitter(), ImageNormalisation(MEAN, STD)
    whole, targets = loaded(changed, 14)  # into the second epoch
    for position in range(14):
        stored = under_key(position, lambda sample: jitter(dataset.inputs[sample]))
        assert torch.equal(whole[position], stored if dataset is VECTORS else normalise(stored))
    assert torch.equal(targets, LABELS[torch.from_numpy(ORDER.ids(0, 14))])
    assert torch.equal(whole, loaded(changed, 3, 5, 6)[0])
    assert torch.equal(whole, loaded(changed, 5, 9, num_workers=2)[0])
    assert not torch.equal(whole[9:], loaded(changed, 14)[0][:5])


def test_the_set_itself_and_the_generators_stay_as_they_are() -> None:
    before, state = PIXELS.clone(), torch.random.get_rng_state()

    def blackened(image: Tensor) -> Tensor:
        return image.zero_()

    inputs, _ = loaded(TransformedSamples(IMAGES, blackened), 4)
    assert len(inputs.unique()) == 3  # black in each channel
    assert torch.equal(PIXELS, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("takes", ["tensor", "float", "pil"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_form_of_an_image_shows_its_pixels(takes: Any, channels: int) -> None:
    dataset, given = ArrayDataset(PIXELS[:, :channels], LABELS), []

    def kept(image: Any) -> Any:
        given.append(image)
        return image

    image, _ = TransformedSamples(dataset, kept, takes=takes)[2]
    assert torch.equal(image, dataset[2][0])
    shown = torch.from_numpy(np.array(given[0])) if takes == "pil" else given[0]
    expected = PIXELS[2, :channels]
    if takes == "pil":
        expected = expected[0] if channels == 1 else expected.permute(1, 2, 0)
    assert torch.equal(shown, expected / 255 if takes == "float" else expected)


def test_an_image_of_pillow_is_turned_as_pillow_turns_it() -> None:
    inputs, _ = loaded(TransformedSamples(ArrayDataset(PIXELS, LABELS), rotated, takes="pil"), 9)
    for position in range(9):
        turns = under_key(position, lambda _: __import__("random").randrange(4))
        expected = torch.rot90(PIXELS[int(ORDER.ids(position, 1)[0])], turns, dims=(1, 2))
        assert torch.equal((inputs[position] * 255).round().to(torch.uint8), expected)


def test_wrong_labels_and_their_number_survive() -> None:
    noisy = NoisyLabels(IMAGES, 0.5, num_classes=4, seed=0)
    changed = TransformedSamples(noisy, Jitter())
    ids = np.arange(COUNT)
    assert [int(changed[one][1]) for one in ids] == noisy.fetch(ids)[1].tolist()
    assert changed.label_range == (0, 3)


@pytest.mark.parametrize(
    ("dataset", "transform", "takes", "message"),
    [
        (IMAGES, lambda image: image.float(), "tensor", r"made float32 \[3, 6, 6\] of uint8 \[3, 6, 6\]: it must keep"),
        (IMAGES, lambda image: image[:, :3], "tensor", r"made uint8 \[3, 3, 6\]"),
        (IMAGES, lambda image: image[None], "float", r"made float32 \[1, 3, 6, 6\] of float32 \[3, 6, 6\]"),
        (IMAGES, lambda image: image.resize((3, 3)), "pil", "made uint8 .* of Image RGB 6 x 6"),
        (IMAGES, lambda image: image.convert("L"), "pil", "made Image L 6 x 6 of Image RGB 6 x 6"),
        (IMAGES, lambda image: None, "tensor", "made NoneType"),
        (IMAGES, lambda image: image.shape.nothing, "tensor", "failed on uint8 .*: AttributeError"),
        (VECTORS, lambda vector: vector, "float", r"needs images that are stored as bytes .* float32 \[5\]"),
    ],
)
def test_a_transform_that_does_not_fit_is_refused(dataset: Any, transform: Any, takes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TransformedSamples(dataset, transform, takes=takes)[0]


def test_views_are_two_draws_after_each_other_and_the_first_is_that_of_one_view() -> None:
    one, _ = loaded(TransformedSamples(IMAGES, Jitter()), 9)
    two, targets = loaded(SeveralViews(TransformedSamples(IMAGES, Jitter()), 2), 4, 5)
    assert two.shape == (9, 2, 3, 6, 6)
    assert torch.equal(two[:, 0], one)
    jitter, normalise = Jitter(), ImageNormalisation(MEAN, STD)
    for position in range(9):
        both = under_key(position, lambda sample: torch.stack([jitter(PIXELS[sample]) for _ in range(2)]))
        assert torch.equal(two[position], normalise(both))
    assert torch.equal(targets, LABELS[torch.from_numpy(ORDER.ids(0, 9))])


def test_views_of_a_set_in_memory_are_augmented_each_by_its_own_draws() -> None:
    augment = Augmentation(SEED, crop_padding=1, flip=True, cutout=2)
    one, _ = loaded(IMAGES, 9, augment=augment)
    several = Augmentation(SEED, crop_padding=1, flip=True, cutout=2, views=3)
    three, _ = loaded(SeveralViews(IMAGES, 3), 4, 5, augment=several)
    assert torch.equal(three[:, 0], one)
    assert not any(torch.equal(view[0], view[place]) for view in three for place in (1, 2))
    # Each is one of the images that a single view can have: undo nothing, redo it from its draws.
    ids = ORDER.ids(0, 9)
    draws = several.draws(ids, np.zeros(9, dtype=np.int64))
    for place in range(3):
        again = augment.apply(IMAGES.fetch(ids)[0], draws[:, 5 * place : 5 * place + 5])
        assert torch.equal(three[:, place], again)


def test_views_of_several_inputs_are_refused() -> None:
    class Named:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return {"one": torch.zeros(3, 2, 2), "two": torch.zeros(3, 2, 2), "label": 0}

    with pytest.raises(DataError, match=r"2 images \[C, H, W\] among its inputs"):
        SeveralViews(Named(), 2)[0]
