"""An encoded image as the pixels that its file means, or an error that names it."""

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
# TIFF tags: bits per sample; 0 in the other one says that 0 is white.
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
        """Pillow knows some formats, such as HDF5 and MPEG, by their first bytes alone."""
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
    remarks: list[str] | None = None,
) -> UInt8Array:
    """One image as uint8 [H, W, C]; read-only.

    The pixels are those that a viewer shows: turned and mirrored as EXIF says; 16 bits per channel are scaled to 8 over
    their full range. Transparency is dropped, as by Pillow's `convert`: a pixel has the colour that is stored under it.
    Of several frames the first one counts. Colour profiles (ICC) are not applied.

    Args:
        source: the encoded bytes, or a file.
        num_channels: 1 converts to grey, 3 to RGB.
        where: names the image; called for errors alone.
        image_size: if given, the shorter side is resized to it (bilinear, antialiased) and the centre square is cut.
        remarks: if given, what is dropped of this image is appended to it.

    Raises:
        DataError: if the bytes are not an image that Pillow can decode, or have no known white.
    """
    pil = require_pillow()
    try:
        with pil.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = _converted(_upright(opened), _MODES[num_channels], opened, pil)
            if image_size is not None:
                image = _resize_and_crop(image, image_size, pil)
            # np.asarray, the usual way, takes twice as long for small images.
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
    """As EXIF says, decided as `datasets` does it: after `load`, which itself turns a TIFF."""
    opened.load()
    if opened.getexif().get(_ORIENTATION) is None:
        return opened
    from PIL.ImageOps import exif_transpose

    return exif_transpose(opened)


def _converted(image: Any, mode: str, opened: Any, pil: Any) -> Any:
    """`image`, which was `opened`, in `mode` "L" or "RGB"."""
    if image.mode == mode:
        return image
    if image.mode[0] in "IF":
        image = _scaled_to_8_bits(image, opened, pil)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    return image if image.mode == mode else image.convert(mode)


def _scaled_to_8_bits(image: Any, opened: Any, pil: Any) -> Any:
    """Grey of 16 bits as "L", rounded: Pillow's own conversion cuts everything off at 255."""
    if not (image.mode.startswith("I;16") or (image.mode == "I" and opened.format in ("PNG", "PPM"))):
        raise ValueError(f"mode {image.mode} of {opened.format} does not say which value is white; save 8 or 16 bits")
    tags = getattr(opened, "tag_v2", {})
    white = 2 ** int(np.max(tags.get(_TIFF_BITS, 16))) - 1
    values = np.asarray(image).astype(np.uint32)
    if tags.get(_TIFF_PHOTOMETRIC) == 0:
        values = white - values
    return pil.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


def _dropped(opened: Any) -> list[str]:
    """What of an image its pixels do not have: transparency, if a pixel has any, and frames."""
    dropped = []
    if opened.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in opened.info:
        alpha = opened if "A" in opened.getbands() else opened.convert("RGBA")
        if alpha.getchannel("A").getextrema()[0] < 255:
            dropped.append("transparency")
    # A phone's JPEG may hold previews: format MPO, in which they are called frames, too.
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
