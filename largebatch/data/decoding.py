"""Decode an image to the pixels that a viewer shows, or raise an error that names it."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from largebatch.data.errors import DataError

UInt8Array = npt.NDArray[np.uint8]

_MODES = {1: "L", 3: "RGB"}
_ORIENTATION = 0x0112  # tag of EXIF
# TIFF tags: bits per sample; photometric interpretation, where 0 means that 0 is white.
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262


def require_pillow() -> Any:
    """The module `PIL.Image`; ImportError with the remedy if Pillow is missing."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('Reading images needs Pillow: pip install "largebatch[images]"') from error
    return Image


@cache
def readable_suffixes() -> frozenset[str]:
    """Suffixes, in lower case with their dot, of the image files that this Pillow can read."""
    pil = require_pillow()
    pil.init()
    from PIL.ImageFile import StubImageFile

    def has_decoder(name: str) -> bool:
        """Pillow only recognises some formats, such as HDF5 and MPEG, and cannot decode them."""
        opener = pil.OPEN.get(name, (None,))[0]
        is_stub = isinstance(opener, type) and issubclass(opener, StubImageFile)
        return opener is not None and not is_stub and name != "MPEG"

    return frozenset(suffix for suffix, name in pil.registered_extensions().items() if has_decoder(name))


def decode_image(
    source: bytes | Path,
    *,
    num_channels: int,
    where: Callable[[], str],
    image_size: int | None = None,
    box: Callable[[int, int], tuple[int, int, int, int]] | None = None,
    remarks: list[str] | None = None,
) -> UInt8Array:
    """Decode one image to uint8 [H, W, C]; read-only.

    The pixels are those that a viewer shows: rotated and mirrored by EXIF; 16 bits per channel are scaled to 8 over
    their full range. Transparency is dropped, as by Pillow's `convert`: a pixel has the colour stored under it. Only
    the first of several frames is used. Colour profiles (ICC) are not applied.

    Args:
        source: the encoded bytes, or a file.
        num_channels: 1 converts to grey, 3 to RGB.
        where: returns the name of the image; called only for errors.
        image_size: if given, the shorter side is resized to it (bilinear, antialiased) and the centre square is
            cropped.
        box: with `image_size`, the part of an image of some width and height that is resized to that square instead:
            left, top, right, bottom.
        remarks: if given, a list that receives the kinds of dropped content.

    Raises:
        DataError: if Pillow cannot decode the bytes, or the value of white is unknown.
    """
    pil = require_pillow()
    try:
        with pil.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = _converted(_upright(opened), _MODES[num_channels], opened, pil)
            if image_size is not None and box is not None:
                # Not `resize(box=...)`, which filters pixels beyond the box into its border.
                image = image.crop(box(*image.size)).resize((image_size, image_size), pil.Resampling.BILINEAR)
            elif image_size is not None:
                image = _resize_and_crop(image, image_size, pil)
            # np.asarray takes twice as long for small images.
            pixels = np.frombuffer(image.tobytes(), dtype=np.uint8)
            width, height = image.size
            if remarks is not None:
                remarks += _dropped(opened)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others for bad bytes
        raise DataError(
            f"{where()}: not a readable image ({type(error).__name__}: {error}). Replace or remove it."
        ) from error
    return pixels.reshape(height, width, num_channels)


def _upright(opened: Any) -> Any:
    """Rotate by EXIF, as `datasets` does: after `load`, which itself rotates a TIFF."""
    opened.load()
    if opened.getexif().get(_ORIENTATION) is None:
        return opened
    from PIL.ImageOps import exif_transpose

    return exif_transpose(opened)


def _converted(image: Any, mode: str, opened: Any, pil: Any) -> Any:
    """Convert `image`, decoded from `opened`, to `mode` "L" or "RGB"."""
    if image.mode == mode:
        return image
    if image.mode[0] in "IF":
        image = _scaled_to_8_bits(image, opened, pil)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    return image if image.mode == mode else image.convert(mode)


def _scaled_to_8_bits(image: Any, opened: Any, pil: Any) -> Any:
    """16-bit grey as "L", rounded; Pillow's own conversion clips at 255."""
    if not (image.mode.startswith("I;16") or (image.mode == "I" and opened.format in ("PNG", "PPM"))):
        raise ValueError(f"mode {image.mode} of {opened.format} does not say which value is white; save 8 or 16 bits")
    tags = getattr(opened, "tag_v2", {})
    white = 2 ** int(np.max(tags.get(_TIFF_BITS, 16))) - 1
    values = np.asarray(image).astype(np.uint32)
    if tags.get(_TIFF_PHOTOMETRIC) == 0:
        values = white - values
    return pil.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


def _dropped(opened: Any) -> list[str]:
    """Kinds of content that decoding drops: transparency, if any pixel is transparent, and further frames."""
    dropped = []
    if opened.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in opened.info:
        alpha = opened if "A" in opened.getbands() else opened.convert("RGBA")
        if alpha.getchannel("A").getextrema()[0] < 255:
            dropped.append("transparency")
    # A phone's JPEG may contain previews: in format MPO they count as frames, too.
    if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:
        dropped.append("frames")
    return dropped


def _resize_and_crop(image: Any, image_size: int, pil: Any) -> Any:
    width, height = image.size
    shorter = min(width, height)
    if shorter != image_size:
        width, height = (max(image_size, round(side * image_size / shorter)) for side in (width, height))
        image = image.resize((width, height), pil.Resampling.BILINEAR)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return image.crop((left, top, left + image_size, top + image_size))
