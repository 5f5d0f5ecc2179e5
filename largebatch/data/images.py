"""Images in Hugging Face parquet files, on disk or from the hub, decoded once into memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from largebatch.data.array import ArrayDataset, ImageNormalisation
from largebatch.data.decoded import DEFAULT_MAX_BYTES_IN_MEMORY, decode_images
from largebatch.data.errors import DataError, OnBadSample, Split, check_on_bad_sample, check_split, labels_outside

_IMAGE_COLUMNS = ("img", "image")
# A hub set without a validation split is evaluated on its test split.
_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "test")}


@dataclass
class _Rows:
    """Encoded images and labels of a split, in order, with the name and row of each.

    `bad` holds the reason for each unusable row, which has an empty image or the label 0.
    """

    skips: bool
    images: list[bytes | Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def describe(self, index: int) -> str:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return f"{self.names[part]} row {index - self.starts[part]}"

    def refuse(self, index: int, why: str) -> None:
        """Raise DataError, or record the reason if bad rows are skipped."""
        if not self.skips:
            raise DataError(why)
        self.bad[index] = why


def parquet_images(
    path: str | Path,
    split: Split,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_column: str | None = None,
    label_column: str = "label",
    num_classes: int | None = None,
    max_bytes_in_memory: int = DEFAULT_MAX_BYTES_IN_MEMORY,
    on_bad_sample: OnBadSample = "stop",
) -> ArrayDataset:
    """The images of a folder of Hugging Face parquet files, as uint8 in memory, decoded by `decode_image`.

    Args:
        path: folder with `train-*.parquet`, and `validation-*.parquet` or else `test-*.parquet`.
        split: "train" or "validation".
        mean: one number per channel, for pixels divided by 255; 1 number means grey, 3 mean RGB.
        std: likewise.
        image_column: bytes, or a struct {bytes, path}. None: "img" or "image", whichever exists.
        label_column: integers in [0, num_classes).
        num_classes: None takes it from the file's Hugging Face metadata, or else the largest label plus one.
        max_bytes_in_memory: limit of the decoded split; every rank holds a copy.
        on_bad_sample: as `data.on_bad_sample`; with "skip", an unusable row raises only when it is fetched.

    Raises:
        DataError: for a missing folder, file, column, an unreadable image, two image sizes or a label out of range.
        ImportError: if pyarrow or Pillow is missing.
    """
    check_split(split)
    check_on_bad_sample(on_bad_sample)
    ImageNormalisation(mean, std)  # refuses wrong numbers before the slow part
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError('Reading parquet files needs pyarrow: pip install "largebatch[images]"') from error
    rows = _Rows(skips=on_bad_sample == "skip")
    for file in _parquet_files(Path(path), split):
        try:
            opened = parquet.ParquetFile(file)
        except Exception as error:  # pyarrow's errors have several bases
            raise DataError(f"{file}: not a readable parquet file ({error}). Copy or download it again.") from error
        columns = opened.schema_arrow.names
        image_column = _image_column(columns, image_column, str(file))
        _check_column(columns, label_column, str(file))
        table = opened.read(columns=[image_column, label_column])
        _append_rows(rows, table, image_column, label_column, name=str(file))
        num_classes = num_classes or _num_classes_in_metadata(table.schema.metadata, label_column)
    return _in_memory(rows, mean, std, num_classes, max_bytes_in_memory)


def hub_images(
    name: str,
    split: Split,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    image_column: str | None = None,
    label_column: str = "label",
    num_classes: int | None = None,
    config_name: str | None = None,
    cache_dir: str | None = None,
    max_bytes_in_memory: int = DEFAULT_MAX_BYTES_IN_MEMORY,
    on_bad_sample: OnBadSample = "stop",
) -> ArrayDataset:
    """The images of a Hugging Face data set, as uint8 in memory; downloaded once to its cache.

    `name` is the data set's name on the hub, or a local folder that `datasets.load_dataset` accepts. "validation" is
    the validation split or else the test split. `config_name` chooses among several configurations; `cache_dir` is the
    cache of `datasets` (None: its default). The other arguments are those of `parquet_images`.

    Raises:
        DataError: as for `parquet_images`; also if the data set cannot be loaded.
        ImportError: if `datasets` or Pillow is missing.
    """
    check_split(split)
    check_on_bad_sample(on_bad_sample)
    ImageNormalisation(mean, std)
    try:
        import datasets
    except ImportError as error:
        raise ImportError('Reading data sets by hub name needs datasets: pip install "largebatch[hf]"') from error
    try:
        loaded = datasets.load_dataset(name, config_name, cache_dir=cache_dir)
    except Exception as error:  # of the network, the hub, or the files
        raise DataError(
            f"{name}: datasets.load_dataset failed ({type(error).__name__}: {error}). Check the name, and that the "
            f"machine is online or the data set is in the cache."
        ) from error
    chosen = next((candidate for candidate in _SPLIT_NAMES[split] if candidate in loaded), None)
    if chosen is None:
        raise DataError(f"{name}: no split {' or '.join(_SPLIT_NAMES[split])}. It has: {', '.join(loaded)}.")
    part = loaded[chosen]
    image_column = _image_column(part.column_names, image_column, name)
    _check_column(part.column_names, label_column, name)
    num_classes = num_classes or getattr(part.features[label_column], "num_classes", None)
    # Not decoded, the column is {bytes, path}, as in the parquet files.
    table = part.cast_column(image_column, datasets.Image(decode=False)).with_format("arrow")[:]
    rows = _Rows(skips=on_bad_sample == "skip")
    _append_rows(rows, table, image_column, label_column, name=f"{name} ({chosen})")
    return _in_memory(rows, mean, std, num_classes, max_bytes_in_memory)


def _parquet_files(folder: Path, split: Split) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. It must contain train-*.parquet and test-*.parquet.")
    for prefix in _SPLIT_NAMES[split]:
        files = sorted(folder.glob(f"{prefix}-*.parquet"))
        if files:
            return files
    wanted = " or ".join(f"{prefix}-*.parquet" for prefix in _SPLIT_NAMES[split])
    found = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.parquet"))[:5]
    raise DataError(f"{folder}: no file {wanted}. Parquet files there: {', '.join(found) or 'none'}.")


def _image_column(columns: list[str], image_column: str | None, where: str) -> str:
    if image_column is not None:
        _check_column(columns, image_column, where)
        return image_column
    found = [column for column in _IMAGE_COLUMNS if column in columns]
    if len(found) != 1:
        raise DataError(
            f"{where}: {len(found)} columns named {' or '.join(_IMAGE_COLUMNS)}; it has: {', '.join(columns)}. "
            f"Name one with image_column."
        )
    return found[0]


def _check_column(columns: list[str], column: str, where: str) -> None:
    if column not in columns:
        raise DataError(f"{where}: no column {column!r}; it has: {', '.join(columns)}. Name one of them.")


def _append_rows(rows: _Rows, table: Any, image_column: str, label_column: str, *, name: str) -> None:
    images, labels = table.column(image_column).to_pylist(), table.column(label_column).to_pylist()
    rows.names.append(name)
    rows.starts.append(len(rows.images))
    for number, (cell, label) in enumerate(zip(images, labels, strict=True)):
        image = _encoded(cell)
        if image is None:
            rows.refuse(
                len(rows.images),
                f"{name} row {number}: column {image_column!r} holds no encoded image. It must be bytes, or a struct "
                "with a field `bytes`, or `path` of a file.",
            )
        if not isinstance(label, int):
            why = f"{name} row {number}: column {label_column!r} is {label!r}. Labels must be integers."
            rows.refuse(len(rows.images), why)
        rows.images.append(b"" if image is None else image)
        rows.labels.append(label if isinstance(label, int) else 0)


def _encoded(cell: Any) -> bytes | Path | None:
    """Bytes or file of a cell of the image column; None if it has neither."""
    if isinstance(cell, dict):
        path = cell.get("path")
        cell = cell.get("bytes")
        if cell is None and path is not None and Path(path).is_file():
            return Path(path)
    return cell if isinstance(cell, bytes) else None


def _num_classes_in_metadata(metadata: dict[bytes, bytes] | None, label_column: str) -> int | None:
    try:
        feature = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label_column]
        return len(feature["names"])
    except (KeyError, TypeError, ValueError):  # written by another program, or not a class label
        return None


def _in_memory(
    rows: _Rows,
    mean: Sequence[float],
    std: Sequence[float],
    num_classes: int | None,
    max_bytes_in_memory: int,
) -> ArrayDataset:
    if not rows.images:
        raise DataError(f"{', '.join(rows.names)}: no rows. A data set needs at least one sample.")
    labels = np.asarray(rows.labels, dtype=np.int64)
    num_classes = num_classes or int(labels.max()) + 1
    for wrong in np.flatnonzero((labels < 0) | (labels >= num_classes)).tolist():
        label, where = int(labels[wrong]), rows.describe(wrong)
        rows.refuse(wrong, labels_outside(label, label, num_classes=num_classes, where=where))
        labels[wrong] = 0
    images = decode_images(
        rows.images,
        num_channels=len(mean),
        describe=rows.describe,
        max_bytes_in_memory=max_bytes_in_memory,
        skips=rows.skips,
    )
    bad = {**images.bad, **rows.bad}
    named: dict[str, Any] = {"mean": mean, "std": std, "num_classes": num_classes}
    return ArrayDataset(images.pixels, torch.from_numpy(labels), bad=bad, plan_notes=images.notes, **named)
