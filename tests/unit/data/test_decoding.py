"""Pixels are what the file says. Truths: numpy, `datasets`, and the numbers that the files were made of."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.data import ArrayDataset, DataError, hub_images, image_folder, parquet_images
from largebatch.data.decoded import decode_images
from largebatch.data.decoding import decode_image, readable_suffixes

pil = pytest.importorskip("PIL.Image", reason='images need Pillow: pip install "largebatch[images]"')
GREY: dict[str, Any] = {"mean": [0.0], "std": [1.0]}
RGB: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3}
# What a viewer does for each value of the tag, on [H, W, ...].
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def turned(array: np.ndarray, orientation: int, kind: str) -> bytes:
    exif = pil.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    return encoded(pil.fromarray(array), kind, exif=exif, **options)


def pixels(data: bytes, channels: int = 3, **options: Any) -> np.ndarray:
    return decode_image(data, num_channels=channels, where=lambda: "here", **options)


CORNERS = np.zeros((6, 8, 3), np.uint8)
CORNERS[:3, :4], CORNERS[:3, 4:], CORNERS[3:, :4] = (250, 0, 0), (0, 250, 0), (0, 0, 250)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_images_are_turned_as_their_exif_says(kind: str) -> None:
    for orientation, upright in UPRIGHT.items():
        found = pixels(turned(CORNERS, orientation, kind)).astype(int)
        wanted = upright(CORNERS).astype(int)
        assert found.shape == wanted.shape, orientation
        # JPEG is lossy at the edges: the median of what differs is 0, of another turn it is not.
        assert np.abs(found - wanted).max() == 0 or kind == "JPEG", orientation
        assert np.abs(found - wanted).mean() < 8, orientation


def test_an_orientation_survives_a_conversion_and_is_followed_before_the_square_is_cut() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for orientation, upright in UPRIGHT.items():
        assert np.array_equal(pixels(turned(grey, orientation, "PNG"))[..., 1], upright(grey))
        square = upright(grey)
        cut = square[:, 1:7] if square.shape[1] == 8 else square[1:7]
        assert np.array_equal(pixels(turned(grey, orientation, "PNG"), 1, image_size=6)[..., 0], cut)


def test_hub_sets_and_parquet_files_have_the_pixels_that_datasets_decodes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": turned(CORNERS[:, :6], orientation, "JPEG"), "path": None} for orientation in UPRIGHT]
    rows = {"image": cells, "label": [*range(8)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=8)})
    own = datasets.Dataset.from_dict(rows, features=features)
    own.to_parquet(tmp_path / "set" / "train-0.parquet")
    hub = hub_images(str(tmp_path / "set"), "train", cache_dir=str(tmp_path / "cache"), **RGB)
    files = parquet_images(tmp_path / "set", "train", **RGB)
    for place in range(8):
        wanted = np.asarray(own[place]["image"]).transpose(2, 0, 1)
        assert np.array_equal(hub.inputs[place], wanted)
        assert np.array_equal(files.inputs[place], wanted)


def test_an_image_column_may_name_files(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "x.png").write_bytes(encoded(pil.new("L", (2, 2), 7)))
    cells = [{"bytes": None, "path": str(tmp_path / "x.png")}]
    table = pyarrow.table({"image": cells, "label": [0]})
    parquet.write_table(table, tmp_path / "train-0.parquet")
    assert parquet_images(tmp_path, "train", **GREY).inputs.unique().tolist() == [7]


SIXTEEN = np.array([[0, 255, 256, 1000], [32767, 32768, 65279, 65535]], dtype=np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_over_their_full_range(kind: str, channels: int) -> None:
    found = pixels(encoded(pil.fromarray(SIXTEEN), kind), channels)
    assert np.array_equal(found[..., 0], np.round(SIXTEEN / 65535 * 255))
    assert np.array_equal(found[..., 0], found[..., -1])


def test_a_tiff_says_how_many_bits_it_has_and_whether_0_is_white() -> None:
    plain = bytearray(encoded(pil.fromarray(SIXTEEN), "TIFF"))
    entry = plain.index(struct.pack("<HHI", 262, 3, 1))
    plain[entry + 8 : entry + 10] = struct.pack("<H", 0)
    assert np.array_equal(pixels(bytes(plain), 1)[..., 0], np.round((65535 - SIXTEEN.astype(int)) / 65535 * 255))


@pytest.mark.parametrize(("array", "mode"), [(np.float32([[0, 0.5]]), "F"), (np.int32([[0, 70_000]]), "I")])
def test_numbers_without_a_known_white_are_refused(array: np.ndarray, mode: str) -> None:
    with pytest.raises(DataError, match=f"here: not a readable image .*mode {mode} of TIFF does not say which value"):
        pixels(encoded(pil.fromarray(array), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_modes_are_those_of_pillows_conversion(mode: str, channels: int) -> None:
    image = pil.fromarray(CORNERS).convert(mode)
    data = encoded(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    wanted = np.asarray(pil.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")).reshape(6, 8, channels)
    assert np.array_equal(pixels(data, channels), wanted)


def half_transparent(mode: str) -> bytes:
    """Left half opaque, right half transparent; a colour under both."""
    image = pil.fromarray(CORNERS).convert(mode)
    if mode == "P":
        return encoded(image, transparency=bytes([0, *[255] * 255]))
    alpha = pil.new("L", image.size, 255)
    alpha.paste(0, (4, 0, 8, 6))
    image.putalpha(alpha)
    return encoded(image)


def test_transparency_and_frames_are_dropped_by_one_rule_and_told_with_their_number() -> None:
    frames = [pil.new("L", (8, 6), shade) for shade in (10, 200)]
    film = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    opaque = encoded(pil.fromarray(CORNERS).convert("RGBA"))
    images = [opaque, half_transparent("RGB"), half_transparent("L"), half_transparent("P"), film, encoded(frames[1])]
    found = decode_images(images, num_channels=3, describe=lambda i: f"image {i}")
    assert np.array_equal(found.pixels[1].numpy().transpose(1, 2, 0), CORNERS), "the colour under the transparency"
    assert found.pixels[4].unique().tolist() == [10], "the first frame"
    alpha, animation = found.notes
    assert alpha.startswith("3 of 6 images have transparent pixels, and transparency is dropped")
    assert alpha.endswith("(image 1)")
    assert animation == "1 of 6 images have several frames, and only the first is used (image 4)"


def test_a_phones_second_picture_in_a_jpeg_is_no_frame() -> None:
    two = encoded(pil.fromarray(CORNERS), "MPO", save_all=True, append_images=[pil.new("RGB", (4, 4))])
    assert decode_images([two], num_channels=3, describe=str).notes == ()


def test_suffixes_are_those_that_pillow_has_a_decoder_for() -> None:
    suffixes = readable_suffixes()
    assert suffixes >= {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".jfif", ".jp2"}
    assert not suffixes & {".txt", ".json", ".npy", ".mpg", ".h5", ".pdf", ".mp4", ""}


def tree(root: Path, *names: str, shade: int = 0) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        suffix = name.rpartition(".")[2].lower()
        if suffix in ("png", "jpg", "webp", "bmp", "tif", "gif") and not Path(name).name.startswith("."):
            pil.new("L", (4, 4), shade + number).save(root / name)
        else:
            (root / name).write_bytes(b"no image")


@pytest.mark.parametrize("limit", [10**6, 0])
def test_a_folder_gives_every_image_below_a_class_and_tells_what_it_leaves_out(tmp_path: Path, limit: int) -> None:
    tree(
        tmp_path / "train",
        "cat/a.png", "cat/b.BMP", "cat/2019/c.webp", "cat/2019/summer/d.tif", "cat/x.png/e.gif",  # the 5 of cat
        "dog/a.png",
        "cat/._a.png", "cat/.ipynb_checkpoints/a.png", "dog/Thumbs.db", "__MACOSX/cat/._a.png", ".cache/z.png",
        "cat/notes.txt", "cat/2019/more.txt", "cat/README", "top.png",
    )  # fmt: skip
    tree(tmp_path / "val", "dog/a.png")
    os.symlink(tmp_path / "train" / "cat" / "2019", tmp_path / "train" / "dog" / "linked")
    os.symlink(tmp_path / "train" / "dog", tmp_path / "train" / "dog" / "back")
    images = image_folder(tmp_path, "train", image_size=4, max_bytes_in_memory=limit, **GREY)
    assert isinstance(images, ArrayDataset) == bool(limit)
    found = [(round(float(inputs[0, 0, 0]) * 255), int(label)) for inputs, label in images]  # type: ignore[attr-defined]
    # By class, then by path; the link adds c and d to dog, the one that leads back adds nothing.
    assert found == [(2, 0), (3, 0), (0, 0), (1, 0), (4, 0), (5, 1), (2, 1), (3, 1)]
    (note,) = images.plan_notes
    folder, _, told = note.partition(": left out ")
    assert folder == str(tmp_path / "train")
    assert told == "5 hidden, 3 .txt, 1 beside the folders, 1 leading back, 1 more"
    assert image_folder(tmp_path, "validation", image_size=4, **GREY).plan_notes == ()


def test_a_class_without_images_is_refused_with_what_is_there_instead(tmp_path: Path) -> None:
    tree(tmp_path / "train", "cat/a.png", "dog/a.txt", "dog/2019/.b.png")
    tree(tmp_path / "val", "cat/a.png")
    with pytest.raises(DataError, match=r"train/dog: no image \(left out: 1 \.txt, 1 hidden\)"):
        image_folder(tmp_path, "train", image_size=4, **GREY)


def test_bad_images_of_a_set_in_memory_are_errors_of_their_samples_alone_if_bad_ones_are_skipped(
    tmp_path: Path,
) -> None:
    tree(tmp_path / "train", "cat/a.png", "cat/b.png", "dog/c.png")
    tree(tmp_path / "val", "cat/a.png")
    whole = (tmp_path / "train/cat/b.png").read_bytes()
    (tmp_path / "train/cat/b.png").write_bytes(whole[:50])
    os.symlink("nowhere.png", tmp_path / "train/dog/broken.png")
    with pytest.raises(DataError, match=r"b\.png: not a readable image"):
        image_folder(tmp_path, "train", image_size=4, **GREY)
    images = image_folder(tmp_path, "train", image_size=4, on_bad_sample="skip", **GREY)
    assert isinstance(images, ArrayDataset)
    assert len(images) == 4
    assert torch.equal(images.fetch(np.array([0, 3]))[0][:, 0, 0, 0] * 255, torch.tensor([0.0, 2.0]))
    for bad, name in ((1, "b.png"), (2, "broken.png")):
        with pytest.raises(DataError, match=name):
            images.fetch(np.array([0, bad]))
        with pytest.raises(DataError, match=name):
            images[bad]
    for file in (tmp_path / "train").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="not a readable image"):
        image_folder(tmp_path, "train", image_size=4, on_bad_sample="skip", **GREY)


def test_bad_rows_of_a_parquet_file_are_errors_of_their_samples_alone_if_bad_ones_are_skipped(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    good, other_size = encoded(pil.new("L", (4, 4), 9)), encoded(pil.new("L", (5, 4), 9))
    cells = [{"bytes": one, "path": None} for one in (other_size, good, good, None, good[:40], good, good)]
    table = pyarrow.table({"image": cells, "label": [0, 1, None, 1, 1, 7, 0]})
    parquet.write_table(table, tmp_path / "train-0.parquet")
    images = parquet_images(tmp_path, "train", num_classes=2, on_bad_sample="skip", **GREY)
    why = {0: "two sizes", 2: "is None", 3: "no encoded", 4: "not a readable", 5: r"outside \[0, 2\)"}
    for row in range(7):
        if row in why:
            with pytest.raises(DataError, match=rf"row {row}.*{why[row]}|{why[row]}.*row {row}"):
                images[row]
        else:
            assert float(images[row][0].max() * 255) == 9
    assert images.targets[[1, 6]].tolist() == [1, 0]
