from __future__ import annotations

import numpy as np
import pytest
import torch

from largebatch.batch.random_keys import keyed_uniforms, stream_key
from largebatch.data import Augmentation

ALL = Augmentation(seed=3, crop_padding=2, flip=True, cutout=3)


def make(num_images: int, height: int = 6, width: int = 8) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Images without a zero, ids that are not their places, and a seam between two epochs."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(num_images, 3, height, width, generator=generator) + 1
    ids = (np.arange(num_images, dtype=np.int64) * 37 + 5) % 1000
    epochs = (np.arange(num_images) >= num_images // 3).astype(np.int64)
    return images, ids, epochs


def draws(augmentation: Augmentation, sample: int, epoch: int) -> np.ndarray:
    return keyed_uniforms(stream_key(augmentation.seed, "augment", int(epoch)), np.array([sample]), 5)[0]


def test_a_sample_is_the_same_alone_in_halves_and_in_any_order() -> None:
    images, ids, epochs = make(24)
    whole = ALL(images, ids, epochs)
    halves = torch.cat([ALL(images[s], ids[s], epochs[s]) for s in (slice(0, 11), slice(11, 24))])
    alone = torch.cat([ALL(images[i : i + 1], ids[i : i + 1], epochs[i : i + 1]) for i in range(24)])
    backwards = ALL(images.flip(0), ids[::-1].copy(), epochs[::-1].copy()).flip(0)
    assert torch.equal(whole, halves)
    assert torch.equal(whole, alone)
    assert torch.equal(whole, backwards)


def test_another_epoch_seed_or_id_gives_another_image() -> None:
    image = make(1)[0].expand(64, -1, -1, -1)
    ids, epoch = np.arange(64, dtype=np.int64), np.zeros(64, dtype=np.int64)
    first = ALL(image, ids, epoch)
    other_epoch = ALL(image, ids, epoch + 1)
    other_seed = Augmentation(seed=4, crop_padding=2, flip=True, cutout=3)(image, ids, epoch)
    # 25 crops x 2 flips x 48 cutouts: two equal draws are rare, 64 of 64 would be a fault.
    assert sum(torch.equal(a, b) for a, b in zip(first, other_epoch, strict=True)) <= 4
    assert sum(torch.equal(a, b) for a, b in zip(first, other_seed, strict=True)) <= 4
    assert len({image.numpy().tobytes() for image in first}) >= 56


def test_everything_off_is_the_identity() -> None:
    images, ids, epochs = make(5)
    assert torch.equal(Augmentation(seed=0)(images, ids, epochs), images)


def test_inputs_are_not_changed_in_place() -> None:
    images, ids, epochs = make(5)
    before = images.clone()
    for options in ({"crop_padding": 1}, {"flip": True}, {"cutout": 2}):
        Augmentation(seed=0, **options)(images, ids, epochs)
        assert torch.equal(images, before)


def test_a_crop_is_the_slice_of_the_zero_padded_image_at_the_drawn_place() -> None:
    images, ids, epochs = make(40)
    augmentation = Augmentation(seed=1, crop_padding=2)
    cropped = augmentation(images, ids, epochs)
    places = set()
    for i in range(40):
        row, column = (int(u * 5) for u in draws(augmentation, ids[i], epochs[i])[:2])
        padded = np.zeros((3, 10, 12), dtype=np.float32)
        padded[:, 2:8, 2:10] = images[i].numpy()
        assert np.array_equal(cropped[i].numpy(), padded[:, row : row + 6, column : column + 8])
        places.add((row, column))
    assert {row for row, _ in places} == {column for _, column in places} == set(range(5))


def test_a_flip_mirrors_left_and_right_for_half_of_the_samples_and_twice_is_the_identity() -> None:
    images, ids, epochs = make(400)
    augmentation = Augmentation(seed=1, flip=True)
    flipped = augmentation(images, ids, epochs)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 150 <= sum(mirrored) <= 250  # 200 +- 10: five standard deviations
    assert torch.equal(augmentation(flipped, ids, epochs), images)


def test_crop_and_flip_together_are_the_mirrored_crop() -> None:
    images, ids, epochs = make(60)
    cropped = Augmentation(seed=1, crop_padding=2)(images, ids, epochs)
    both = Augmentation(seed=1, crop_padding=2, flip=True)(images, ids, epochs)
    flips = [draws(Augmentation(seed=1), ids[i], epochs[i])[2] < 0.5 for i in range(60)]
    expected = torch.stack([image.flip(-1) if flip else image for image, flip in zip(cropped, flips, strict=True)])
    assert torch.equal(both, expected)


def test_cutout_is_a_square_of_zeros_around_the_drawn_pixel_cut_off_at_the_border() -> None:
    images, ids, epochs = make(200)
    augmentation = Augmentation(seed=1, cutout=3)
    cut = augmentation(images, ids, epochs)
    for i in range(200):
        uniforms = draws(augmentation, ids[i], epochs[i])
        row, column = int(uniforms[3] * 6), int(uniforms[4] * 8)
        expected = images[i].clone()
        expected[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 0
        assert torch.equal(cut[i], expected)
    areas = (cut[:, 0] == 0).sum((1, 2))
    assert int(areas.max()) == 9
    assert int(areas.min()) == 4  # in a corner


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8])
def test_the_type_of_the_images_is_kept(dtype: torch.dtype) -> None:
    images, ids, epochs = make(4)
    assert ALL(images.to(dtype), ids, epochs).dtype == dtype


@pytest.mark.parametrize("option", ["crop_padding", "cutout"])
def test_negative_sizes_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}=-1"):
        Augmentation(seed=0, **{option: -1})


def test_inputs_that_are_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not inputs of shape \(2, 5\)"):
        ALL(torch.zeros(2, 5), np.arange(2), np.zeros(2, dtype=np.int64))
