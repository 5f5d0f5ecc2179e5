"""Encoded images to uint8 arrays, with the file or row of every image that cannot be used."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from largebatch.data.errors import DataError

UInt8Array = npt.NDArray[np.uint8]

# 4 GiB: 1.4 million RGB images of 32 x 32, or 28,000 of 224 x 224. Every rank of a machine holds its own copy.
DEFAULT_MAX_BYTES_IN_MEMORY = 4 * 2**30

_BLOCK = 256
# Pillow parses headers under the interpreter lock; below this many bytes an image is mostly header, and threads
# that fight for the lock are slower than one (measured on 32 x 32 JPEG: 137 us per image with two, 131 with one).
_ENCODED_BYTES_WORTH_A_THREAD = 8 * 1024
_MODES = {1: "L", 3: "RGB"}


def require_pillow() -> Any:
    """The module `PIL.Image`; ImportError with the remedy if Pillow is missing."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('Reading images needs Pillow: pip install "largebatch[images]"') from error
    return Image


def decode_image(
    source: bytes | Path, *, num_channels: int, where: Callable[[], str], image_size: int | None = None
) -> UInt8Array:
    """One image as uint8 [H, W, C]; read-only.

    Args:
        source: the encoded bytes, or a file.
        num_channels: 1 converts to grey, 3 to RGB.
        where: names the image; called for errors alone.
        image_size: if given, the shorter side is resized to it (bilinear, antialiased) and the centre square is cut.

    Raises:
        DataError: if the bytes are not an image that Pillow can decode.
    """
    pil = require_pillow()
    try:
        with pil.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = opened if opened.mode == _MODES[num_channels] else opened.convert(_MODES[num_channels])
            if image_size is not None:
                image = _resize_and_crop(image, image_size, pil)
            # np.asarray, the usual way, takes twice as long for small images.
            pixels = np.frombuffer(image.tobytes(), dtype=np.uint8)
            width, height = image.size
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others for bad bytes
        raise DataError(
            f"{where()}: not a readable image ({type(error).__name__}: {error}). Replace or remove it."
        ) from error
    return pixels.reshape(height, width, num_channels)


def decode_images(
    sources: Sequence[bytes] | Sequence[Path],
    *,
    num_channels: int,
    describe: Callable[[int], str],
    image_size: int | None = None,
    max_bytes_in_memory: int = DEFAULT_MAX_BYTES_IN_MEMORY,
) -> Tensor:
    """All images as one uint8 tensor [N, C, H, W].

    Args:
        sources: encoded bytes, or files.
        num_channels: 1 (grey) or 3 (RGB).
        describe: the file or row of image i, for errors.
        image_size: see `decode_image`; without it all images must have one size.
        max_bytes_in_memory: the most that the decoded images may take.

    Raises:
        DataError: if an image is unreadable or of another size, or the set is larger than `max_bytes_in_memory`.
    """

    def decode(index: int) -> UInt8Array:
        where = partial(describe, index)
        return decode_image(sources[index], num_channels=num_channels, where=where, image_size=image_size)

    shape = decode(0).shape
    _check_fits_in_memory(len(sources), shape, max_bytes_in_memory)
    images = np.empty((len(sources), shape[2], *shape[:2]), dtype=np.uint8)

    def decode_block(first: int, end: int) -> None:
        arrays = [decode(index) for index in range(first, end)]
        for index, array in enumerate(arrays, start=first):
            if array.shape != shape:
                raise DataError(
                    f"Images of two sizes: {describe(0)} is {_size(shape)}, {describe(index)} is {_size(array.shape)}. "
                    f"A batch is one tensor, so all images need one size: resize the files first, or read them as an "
                    f"image folder with image_size."
                )
        images[first:end] = np.stack(arrays).transpose(0, 3, 1, 2)

    blocks = [(first, min(first + _BLOCK, len(sources))) for first in range(0, len(sources), _BLOCK)]
    source = sources[0]
    encoded_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
    if encoded_bytes < _ENCODED_BYTES_WORTH_A_THREAD:
        list(starmap(decode_block, blocks))
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as executor:
            list(executor.map(decode_block, *zip(*blocks, strict=True)))
    return torch.from_numpy(images)


def _check_fits_in_memory(num_images: int, shape: tuple[int, ...], max_bytes_in_memory: int) -> None:
    num_bytes = num_images * int(np.prod(shape))
    if num_bytes > max_bytes_in_memory:
        raise DataError(
            f"{num_images} images of {_size(shape)} take {num_bytes} bytes in memory on every rank, more than "
            f"max_bytes_in_memory={max_bytes_in_memory}. Raise it if each rank has that much, or use an image folder, "
            f"which is read from disk when it is too large."
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"


def _resize_and_crop(image: Any, image_size: int, pil: Any) -> Any:
    width, height = image.size
    shorter = min(width, height)
    if shorter != image_size:
        width, height = (max(image_size, round(side * image_size / shorter)) for side in (width, height))
        image = image.resize((width, height), pil.Resampling.BILINEAR)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return image.crop((left, top, left + image_size, top + image_size))
