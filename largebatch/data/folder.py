"""Images in one folder per class: in memory if they fit, else read from disk by workers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from largebatch.data.array import ArrayDataset, ImageNormalisation
from largebatch.data.decoded import DEFAULT_MAX_BYTES_IN_MEMORY, decode_images, notes_of_some
from largebatch.data.decoding import decode_image, readable_suffixes
from largebatch.data.errors import DataError, OnBadSample, Split, check_on_bad_sample, check_split
from largebatch.data.files import Scan, is_hidden


class Crop(Protocol):
    """Chooses a random box of an image."""

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom, in pixels."""


_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "test")}


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images decoded when they are fetched: float32 [C, image_size, image_size] and a label.

    Attributes:
        files: the image files, ordered by class, then by path.
        labels: the class of each file.
        num_classes: number of classes.
        plan_notes: notes that the plan prints before training.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int],
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        plan_notes: Sequence[str] = (),
    ) -> None:
        self.files = list(files)
        self.labels = list(labels)
        self.num_classes = num_classes
        self.plan_notes = tuple(plan_notes)
        self._image_size = image_size
        self._normalise = ImageNormalisation(mean, std)
        self._is_stored_form = False
        self._crop: Crop | None = None

    def cropped_by(self, crop: Crop) -> ImageFiles:
        """The same images, of each of which a random box is taken and resized; see `RandomResizedCrop`."""
        cropped = copy.copy(self)
        cropped._crop = crop
        return cropped

    def __len__(self) -> int:
        return len(self.files)

    @property
    def label_range(self) -> tuple[int, int]:
        """Smallest and largest label."""
        return min(self.labels), max(self.labels)

    def stored_form(self) -> tuple[ImageFiles, ImageNormalisation | None]:
        """See `largebatch.data.stored`; a subclass with a `__getitem__` of its own has none."""
        if type(self).__getitem__ is not ImageFiles.__getitem__:
            return self, None
        stored = copy.copy(self)
        stored._is_stored_form = True
        return stored, self._normalise

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        decoded = decode_image(
            self.files[index],
            num_channels=self._normalise.num_channels,
            where=lambda: str(self.files[index]),
            image_size=self._image_size,
            box=None if self._crop is None else self._crop.box,
        )
        pixels = torch.from_numpy(decoded.transpose(2, 0, 1).copy())
        return (pixels if self._is_stored_form else self._normalise(pixels)), self.labels[index]


def image_folder(
    path: str | Path,
    split: Split,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    max_bytes_in_memory: int = DEFAULT_MAX_BYTES_IN_MEMORY,
    on_bad_sample: OnBadSample = "stop",
) -> ArrayDataset | ImageFiles:
    """The images below `path`/SPLIT/CLASS/, at any depth, of every suffix that Pillow reads, resized to squares.

    Images are decoded by `decode_image`: the shorter side is resized to `image_size` and the centre cropped. If the
    split then takes at most `max_bytes_in_memory`, it is decoded once into memory. Otherwise each image is read when it
    is needed, by the loader's `num_workers` processes. Pixels are the same either way.

    Links are followed. Hidden files and folders (see `is_hidden`) and files with other suffixes are left out; the data
    set's `plan_notes` count them.

    Args:
        path: folder with `train` and with `validation`, `val` or `test`. Labels number the sorted folders of `train`.
        split: "train" or "validation".
        image_size: side of the images, in pixels.
        mean: one number per channel, for pixels divided by 255; 1 number means grey, 3 mean RGB.
        std: likewise.
        max_bytes_in_memory: limit of the decoded split in memory, at 1 byte per pixel and channel.
        on_bad_sample: as `data.on_bad_sample`; with "skip", an unreadable image raises only when it is fetched.

    Raises:
        DataError: for a missing folder, a class without images, a class that `train` lacks, an unreadable image.
        ValueError: if `image_size` is below 1 or `mean` and `std` are invalid.
        ImportError: if Pillow is missing.
    """
    check_split(split)
    check_on_bad_sample(on_bad_sample)
    if image_size < 1:
        raise ValueError(f"image_size={image_size}: the side of the images must be at least 1 pixel.")
    ImageNormalisation(mean, std)  # refuses wrong numbers before the slow part
    files, labels, num_classes, notes = _list_images(Path(path), split)

    def describe(index: int) -> str:
        return str(files[index])

    named: dict[str, Any] = {"image_size": image_size, "mean": mean, "std": std, "num_classes": num_classes}
    if len(files) * len(mean) * image_size**2 > max_bytes_in_memory:
        notes += notes_of_some(files, num_channels=len(mean), describe=describe, image_size=image_size)
        return ImageFiles(files, labels, plan_notes=notes, **named)
    images = decode_images(
        files,
        num_channels=len(mean),
        describe=describe,
        image_size=image_size,
        max_bytes_in_memory=max_bytes_in_memory,
        skips=on_bad_sample == "skip",
    )
    dataset = ArrayDataset(
        images.pixels,
        torch.tensor(labels),
        mean=mean,
        std=std,
        num_classes=num_classes,
        bad=images.bad,
        plan_notes=[*notes, *images.notes],
    )
    dataset.files = ImageFiles(files, labels, **named)
    return dataset


def _list_images(root: Path, split: Split) -> tuple[list[Path], list[int], int, list[str]]:
    """Files, their labels, the number of classes, and notes on files left out."""
    classes = _class_names(_split_folder(root, "train"))
    folder = _split_folder(root, split)
    unknown = [name for name in _class_names(folder) if name not in classes]
    if unknown:
        raise DataError(
            f"{folder}: class {unknown[0]!r} does not occur in {root / 'train'}, which has {len(classes)} classes. "
            f"Labels number the classes of the training set. Rename or remove the folder."
        )
    scan = Scan(readable_suffixes())
    scan.leave_out(entry for entry in folder.iterdir() if not entry.is_dir() or is_hidden(entry.name))
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = scan.below(folder / name) if (folder / name).is_dir() else []
        if not images and split == "train":
            raise DataError(
                f"{folder / name}: no image{scan.left_out_below(folder / name)}. Remove the folder of an empty class."
            )
        files += images
        labels += [label] * len(images)
    if not files:
        raise DataError(f"{folder}: no images{scan.left_out_below(folder)}. Put them into {folder}/CLASS/.")
    return files, labels, len(classes), scan.notes(folder)


def _split_folder(root: Path, split: Split) -> Path:
    for name in _SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{root}: no folder {' or '.join(_SPLIT_FOLDERS[split])}. Put images into {root}/SPLIT/CLASS/.")


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
