from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from largebatch.data import ArrayDataset, RandomResizedCrop, image_folder, with_random_crops
from largebatch.data.folder import ImageFiles

MEAN, STD = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of three sizes, of which no two parts look alike."""
    generator = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name, size in (("a", (40, 60, 3)), ("b", (64, 48, 3)), ("c", (33, 97, 3))):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / split / name / "1.png")
    return tmp_path


def test_boxes_have_the_share_and_the_ratio_of_the_recipe() -> None:
    torch.manual_seed(0)
    crop = RandomResizedCrop(scale=(0.08, 0.5))  # up to a half every box fits: none is drawn anew
    boxes = np.array([crop.box(1000, 1000) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert max(right.max(), bottom.max()) <= 1000
    shares = (right - left) * (bottom - top) / 1000**2
    ratios = np.log((right - left) / (bottom - top))
    for values, low, high in ((shares, 0.08, 0.5), (ratios, math.log(3 / 4), math.log(4 / 3))):
        assert low - 0.01 < values.min() < values.max() < high + 0.01
        deviation = (high - low) / math.sqrt(12)  # of a uniform number
        assert values.mean() == pytest.approx((low + high) / 2, abs=5 * deviation / math.sqrt(len(values)))
        assert values.std() == pytest.approx(deviation, rel=0.05)
    # The place is uniform over what is left.
    assert (left / (1000 - (right - left))).mean() == pytest.approx(0.5, abs=5 / math.sqrt(12 * len(left)))


@pytest.mark.parametrize(
    ("size", "box"),
    [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((1, 1), (0, 0, 1, 1))],
)
def test_where_no_box_fits_it_is_the_largest_in_the_middle(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    # Of a long image the whole area never fits into a box of an allowed ratio.
    assert RandomResizedCrop(scale=(1.0, 1.0)).box(*size) == box


def test_files_are_cropped_from_the_whole_image_as_pillow_does_it(folder: Path) -> None:
    plain = image_folder(folder, "train", image_size=16, mean=MEAN, std=STD)
    assert isinstance(plain, ArrayDataset)
    crop = RandomResizedCrop()
    cropped = with_random_crops(plain, crop)
    assert isinstance(cropped, ImageFiles)
    for index, file in enumerate(sorted((folder / "train").rglob("*.png"))):
        torch.manual_seed(index)
        image, label = cropped[index]
        torch.manual_seed(index)
        with Image.open(file) as whole:
            part = whole.crop(crop.box(*whole.size)).resize((16, 16), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(part)).permute(2, 0, 1)
        assert torch.equal((image * 255).round().to(torch.uint8), expected)
        assert label == index
        assert torch.equal(plain[index][0], image_folder(folder, "train", image_size=16, mean=MEAN, std=STD)[index][0])
    on_disk = image_folder(folder, "train", image_size=16, mean=MEAN, std=STD, max_bytes_in_memory=1)
    torch.manual_seed(0)
    first = with_random_crops(on_disk, crop)[0][0]
    torch.manual_seed(0)
    assert torch.equal(first, cropped[0][0])


def test_images_in_memory_are_cropped_to_their_own_size() -> None:
    pixels = torch.randint(0, 256, (2, 1, 9, 12), dtype=torch.uint8)
    crop = RandomResizedCrop(scale=(0.3, 0.3), ratio=(1.0, 1.0))
    torch.manual_seed(1)
    image, _ = with_random_crops(ArrayDataset(pixels, torch.zeros(2)), crop)[1]
    torch.manual_seed(1)
    box = crop.box(12, 9)
    expected = Image.fromarray(pixels[1, 0].numpy()).crop(box).resize((12, 9), Image.Resampling.BILINEAR)
    assert torch.equal((image[0] * 255).round().to(torch.uint8), torch.from_numpy(np.array(expected)))


def test_ranges_that_no_image_has_and_sets_without_bytes_are_refused() -> None:
    for options in ({"scale": (0.0, 1.0)}, {"scale": (0.5, 0.2)}, {"scale": (0.5, 1.1)}, {"ratio": (2.0, 1.0)}):
        with pytest.raises(ValueError, match="give the smallest and largest"):
            RandomResizedCrop(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds no images as bytes"):
        with_random_crops(ArrayDataset(torch.zeros(2, 3), torch.zeros(2)), RandomResizedCrop())
