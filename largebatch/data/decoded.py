"""Many encoded images as one tensor, and notes on content that decoding dropped."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from largebatch.data.decoding import UInt8Array, decode_image
from largebatch.data.errors import DataError
from largebatch.data.subset import spread

# 4 GiB: 1.4 million RGB images of 32 x 32, or 28,000 of 224 x 224. Every rank on a machine holds its own copy.
DEFAULT_MAX_BYTES_IN_MEMORY = 4 * 2**30

_BLOCK = 256
# Pillow parses headers under the GIL. Below this size an image is mostly header, and threads that contend for the GIL
# are slower than one (32 x 32 JPEG: 137 us per image with two threads, 131 us with one).
_ENCODED_BYTES_WORTH_A_THREAD = 8 * 1024
_LOOKED_AT = 32
_MEANINGS = {
    "transparency": "have transparent pixels, and transparency is dropped: they get the colour stored under them. "
    "Composite the images over a background first if that is not intended",
    "frames": "have several frames, and only the first is used",
}


@dataclass(frozen=True)
class DecodedImages:
    """A set of images in memory.

    Attributes:
        pixels: uint8 [N, C, H, W]; zeros for an unusable image.
        bad: the reason for each unusable image.
        notes: notes that the plan prints before training.
    """

    pixels: Tensor
    bad: Mapping[int, str]
    notes: tuple[str, ...]


def decode_images(
    sources: Sequence[bytes | Path],
    *,
    num_channels: int,
    describe: Callable[[int], str],
    image_size: int | None = None,
    max_bytes_in_memory: int = DEFAULT_MAX_BYTES_IN_MEMORY,
    skips: bool = False,
) -> DecodedImages:
    """Decode all images into one tensor.

    Args:
        sources: encoded bytes, or files.
        num_channels: 1 (grey) or 3 (RGB).
        describe: returns the file or row of image i, for errors.
        image_size: see `decode_image`; without it all images must have one size.
        max_bytes_in_memory: limit for the decoded images.
        skips: record unusable images in `bad` instead of raising: an image that is unreadable, or whose size differs
            from that of most images of a sample spread over the set.

    Raises:
        DataError: if an image is unreadable or of another size, or the set is larger than `max_bytes_in_memory`.
    """
    remarks: list[tuple[int, str]] = []  # of all threads: appending is atomic
    bad: dict[int, str] = {}

    def decode(index: int) -> UInt8Array:
        own: list[str] = []
        where = partial(describe, index)
        pixels = decode_image(
            sources[index], num_channels=num_channels, where=where, image_size=image_size, remarks=own
        )
        remarks.extend((index, remark) for remark in own)
        return pixels

    model, shape = _shape_of_most(sources, decode) if skips else (0, decode(0).shape)
    remarks.clear()
    _check_fits_in_memory(len(sources), shape, max_bytes_in_memory)
    images = np.zeros((len(sources), shape[2], *shape[:2]), dtype=np.uint8)

    def decode_block(first: int, end: int) -> None:
        for index in range(first, end):
            try:
                pixels = decode(index)
                if pixels.shape != shape:
                    raise DataError(_two_sizes(describe(model), shape, describe(index), pixels.shape))
                images[index] = pixels.transpose(2, 0, 1)
            except DataError as error:  # noqa: PERF203
                if not skips:
                    raise
                bad[index] = str(error)

    _over_blocks(decode_block, sources)
    if len(bad) == len(sources):
        raise DataError(f"None of {len(sources)} images can be used. {bad[0]}")
    notes = _counted(sorted(remarks), f"of {len(sources)} images", describe)
    return DecodedImages(torch.from_numpy(images), dict(sorted(bad.items())), tuple(notes))


def _over_blocks(decode_block: Callable[[int, int], None], sources: Sequence[bytes | Path]) -> None:
    """Call `decode_block` with the bounds of every block, in threads if that is faster."""
    blocks = [(first, min(first + _BLOCK, len(sources))) for first in range(0, len(sources), _BLOCK)]
    if _num_bytes(sources[0]) < _ENCODED_BYTES_WORTH_A_THREAD:
        list(starmap(decode_block, blocks))
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as executor:
            list(executor.map(decode_block, *zip(*blocks, strict=True)))


def notes_of_some(
    sources: Sequence[Path], *, num_channels: int, describe: Callable[[int], str], image_size: int
) -> tuple[str, ...]:
    """Notes on images that stay on disk, from decoding a sample spread over the set."""
    remarks: list[tuple[int, str]] = []
    looked_at = spread(len(sources), _LOOKED_AT)
    for index in looked_at:
        own: list[str] = []
        # An unreadable image is reported or skipped when it is loaded.
        with contextlib.suppress(DataError):
            where = partial(describe, index)
            decode_image(sources[index], num_channels=num_channels, where=where, image_size=image_size, remarks=own)
        remarks += [(index, remark) for remark in own]
    return tuple(_counted(remarks, f"of {len(looked_at)} sampled images", describe))


def _counted(remarks: Iterable[tuple[int, str]], of: str, describe: Callable[[int], str]) -> Iterator[str]:
    examples: dict[str, list[int]] = {}
    for index, remark in remarks:
        examples.setdefault(remark, []).append(index)
    for remark, places in examples.items():
        yield f"{len(places)} {of} {_MEANINGS[remark]} ({describe(places[0])})"


def _shape_of_most(sources: Sequence[bytes | Path], decode: Callable[[int], UInt8Array]) -> tuple[int, tuple[int, ...]]:
    """The most common shape among some sampled images, and the index of an image that has it."""
    shapes: dict[int, tuple[int, ...]] = {}
    some = spread(len(sources), _LOOKED_AT)
    for index in itertools.chain(some, sorted(set(range(len(sources))) - set(some))):
        if shapes and index not in some:
            break
        with contextlib.suppress(DataError):
            shapes[index] = decode(index).shape
    if not shapes:
        decode(0)  # raises the reason
    most, _ = Counter(shapes.values()).most_common(1)[0]
    return next(index for index, shape in shapes.items() if shape == most), most


def _two_sizes(first: str, shape: tuple[int, ...], other: str, other_shape: tuple[int, ...]) -> str:
    return (
        f"Images of two sizes: {first} is {_size(shape)}, {other} is {_size(other_shape)}. A batch is one tensor, so "
        f"all images need one size: resize the files first, or read them as an image folder with image_size."
    )


def _num_bytes(source: bytes | Path) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size if source.exists() else 0


def _check_fits_in_memory(num_images: int, shape: tuple[int, ...], max_bytes_in_memory: int) -> None:
    num_bytes = num_images * int(np.prod(shape))
    if num_bytes > max_bytes_in_memory:
        raise DataError(
            f"{num_images} images of {_size(shape)} take {num_bytes} bytes in memory on every rank, more than "
            f"max_bytes_in_memory={max_bytes_in_memory}. Raise it if each rank has that much memory, or use an image "
            f"folder, which is read from disk when it is too large."
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"
