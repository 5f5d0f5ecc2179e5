from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import ArrayDataset, DataError, MicroBatchLoader, hub_images, image_folder, parquet_images
from largebatch.data import decoded as decoded_module
from largebatch.data.decoded import decode_images

pil = pytest.importorskip("PIL.Image", reason='images need Pillow: pip install "largebatch[images]"')
pyarrow = pytest.importorskip("pyarrow", reason='parquet needs pyarrow: pip install "largebatch[images]"')
parquet = pytest.importorskip("pyarrow.parquet")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
RGB: dict[str, Any] = {"mean": MEAN, "std": STD}


def encoded(seed: int, *, size: tuple[int, int] = (10, 8), kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A random image of (width, height)."""
    rng = np.random.default_rng(seed)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    buffer = io.BytesIO()
    pil.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(buffer, format=kind)
    return buffer.getvalue()


def write(
    file: Path, images: list[Any], labels: list[Any], *, image: str = "img", label: str = "label", **meta: Any
) -> None:
    cells = [{"bytes": data, "path": None} for data in images]
    table = pyarrow.table({image: cells, label: labels})
    if meta:
        features = {"info": {"features": {label: meta}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file, row_group_size=2)


def by_pillow(data: bytes, mode: str = "RGB") -> torch.Tensor:
    array = np.asarray(pil.open(io.BytesIO(data)).convert(mode))
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1).copy())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training files with 5 and 2 images, one test file with 3."""
    write(tmp_path / "train-00000-of-00002.parquet", [encoded(i) for i in range(5)], [3, 1, 0, 2, 1])
    write(tmp_path / "train-00001-of-00002.parquet", [encoded(i) for i in (5, 6)], [2, 0])
    write(tmp_path / "test-00000-of-00001.parquet", [encoded(i) for i in (20, 21, 22)], [1, 0, 3])
    return tmp_path


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_parquet_images_are_the_pixels_that_pillow_decodes_in_the_order_of_the_files(tmp_path: Path, kind: str) -> None:
    data = [encoded(i, kind=kind) for i in range(600)]  # more than two blocks of decoding
    write(tmp_path / "train-0.parquet", data[:400], [i % 4 for i in range(400)])
    write(tmp_path / "train-1.parquet", data[400:], [i % 4 for i in range(200)])
    images = parquet_images(tmp_path, "train", **RGB)
    assert images.inputs.dtype == torch.uint8
    assert torch.equal(images.inputs, torch.stack([by_pillow(d) for d in data]))
    assert images.targets.tolist() == [i % 4 for i in range(600)]
    assert images.num_classes == 4
    batch, _ = images.fetch(np.array([599]))
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(batch[0].double(), (by_pillow(data[599]).double() / 255 - mean) / std, rtol=0, atol=1e-6)


def test_threads_decode_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [encoded(i) for i in range(700)]
    alone = decode_images(data, num_channels=3, describe=str).pixels
    monkeypatch.setattr(decoded_module, "_ENCODED_BYTES_WORTH_A_THREAD", 0)
    assert torch.equal(decode_images(data, num_channels=3, describe=str).pixels, alone)
    data[650] = b"broken"
    data[690] = b"broken too"
    with pytest.raises(DataError, match=r"^image 650"):
        decode_images(data, num_channels=3, describe=lambda i: f"image {i}")


def test_validation_is_the_validation_file_or_else_the_test_file(folder: Path) -> None:
    assert parquet_images(folder, "validation", **RGB).targets.tolist() == [1, 0, 3]
    write(folder / "validation-0.parquet", [encoded(9)], [1])
    assert parquet_images(folder, "validation", **RGB).targets.tolist() == [1]


def test_one_mean_makes_the_images_grey(folder: Path) -> None:
    images = parquet_images(folder, "train", mean=(0.5,), std=(0.5,))
    assert images.inputs.shape == (7, 1, 8, 10)
    assert torch.equal(images.inputs[6], by_pillow(encoded(6), "L"))


def test_grey_files_become_rgb_by_repetition(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [encoded(0, mode="L")], [0])
    image = parquet_images(tmp_path, "train", **RGB).inputs[0]
    assert torch.equal(image[0], image[2])
    assert torch.equal(image[:1], by_pillow(encoded(0, mode="L"), "L"))


def test_a_column_of_bytes_and_columns_by_name_are_read(tmp_path: Path) -> None:
    table = pyarrow.table({"picture": [encoded(0)], "fine": [1], "img": [None]})
    parquet.write_table(table, tmp_path / "train-0.parquet")
    images = parquet_images(tmp_path, "train", image_column="picture", label_column="fine", **RGB)
    assert torch.equal(images.inputs[0], by_pillow(encoded(0)))


@pytest.mark.parametrize("meta", [{"names": list("abcdef"), "_type": "ClassLabel"}, {}])
def test_the_number_of_classes_is_that_of_the_metadata_or_of_the_argument(tmp_path: Path, meta: dict) -> None:
    write(tmp_path / "train-0.parquet", [encoded(0)], [1], **meta)
    assert parquet_images(tmp_path, "train", **RGB).num_classes == (6 if meta else 2)
    assert parquet_images(tmp_path, "train", num_classes=9, **RGB).num_classes == 9


@pytest.mark.bad_input("data that are missing, empty or damaged")
def test_faults_of_a_folder_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        parquet_images(tmp_path / "nowhere", "train", **RGB)
    (folder / "sub").mkdir()
    (folder / "test-00000-of-00001.parquet").rename(folder / "sub" / "test-0.parquet")
    with pytest.raises(DataError, match=r"no file validation-\*\.parquet or test-\*.*sub/test-0\.parquet"):
        parquet_images(folder, "validation", **RGB)
    with pytest.raises(DataError, match="no column 'coarse'; it has: img, label"):
        parquet_images(folder, "train", label_column="coarse", **RGB)
    with pytest.raises(DataError, match="no column 'photo'; it has: img, label"):
        parquet_images(folder, "train", image_column="photo", **RGB)
    with pytest.raises(DataError, match=r"7 images of 10 x 8 pixels take 1680 bytes.*max_bytes_in_memory=1679"):
        parquet_images(folder, "train", max_bytes_in_memory=1679, **RGB)
    assert len(parquet_images(folder, "train", max_bytes_in_memory=1680, **RGB)) == 7
    (folder / "train-00000-of-00002.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"train-00000-of-00002\.parquet: not a readable parquet file"):
        parquet_images(folder, "train", **RGB)


@pytest.mark.fault(46)
@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([encoded(0), encoded(1)[:60]], [0, 0], r"train-1\.parquet row 1: not a readable image"),
        ([encoded(0), b"GIF89a nonsense"], [0, 0], r"train-1\.parquet row 1: not a readable image"),
        ([encoded(0), None], [0, 0], r"train-1\.parquet row 1: column 'img' holds no encoded image"),
        ([encoded(0), encoded(1)], [0, 7], r"train-1\.parquet row 1: labels from 7 to 7, outside \[0, 4\)"),
        ([encoded(0), encoded(1)], [-1, 0], r"train-1\.parquet row 0: labels from -1"),
        ([encoded(0), encoded(1)], [0, None], r"train-1\.parquet row 1: column 'label' is None"),
        ([encoded(0), encoded(1)], [0.0, 0.5], r"row 0: column 'label' is 0\.0\. Labels must be integers"),
        (
            [encoded(0), encoded(1, size=(8, 10))],
            [0, 0],
            r"train-0\.parquet row 0 is 10 x 8 pixels, \S*train-1\.parquet row 1 is 8 x 10 pixels",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_file(tmp_path: Path, images: list, labels: list, message: str) -> None:
    write(tmp_path / "train-0.parquet", [encoded(i) for i in range(3)], [0, 1, 2])
    write(tmp_path / "train-1.parquet", images, labels)
    with pytest.raises(DataError, match=message):
        parquet_images(tmp_path, "train", num_classes=4, **RGB)


def test_a_split_without_rows_or_with_two_image_columns_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [], [])
    with pytest.raises(DataError, match="no rows"):
        parquet_images(tmp_path, "train", **RGB)
    parquet.write_table(pyarrow.table({"img": [b""], "image": [b""], "label": [0]}), tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match="2 columns named img or image"):
        parquet_images(tmp_path, "train", **RGB)


def image_tree(root: Path) -> Path:
    """Classes ant (3 images), bee (2); one validation image of bee."""
    sizes = {"train/ant/b.png": (16, 12), "train/ant/a.JPG": (12, 16), "train/ant/c.jpeg": (12, 12)}
    sizes |= {"train/bee/1.png": (30, 20), "train/bee/2.png": (6, 9), "val/bee/x.png": (16, 12)}
    for number, (name, size) in enumerate(sizes.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if name.endswith("png") else "JPEG"
        (root / name).write_bytes(encoded(number, size=size, kind=kind))
    (root / "train/ant/notes.txt").write_text("not an image")
    (root / "train/.cache").mkdir()
    return root


def test_image_folders_give_the_same_pixels_from_memory_and_from_disk(tmp_path: Path) -> None:
    root = image_tree(tmp_path)
    in_memory = image_folder(root, "train", image_size=12, **RGB)
    on_disk = image_folder(root, "train", image_size=12, max_bytes_in_memory=5 * 3 * 12 * 12 - 1, **RGB)
    assert isinstance(in_memory, ArrayDataset)
    assert not isinstance(on_disk, ArrayDataset)
    assert len(in_memory) == len(on_disk) == 5
    assert in_memory.num_classes == on_disk.num_classes == 2
    plan, order = BatchPlan.solve(global_batch_size=5, world_size=1), SampleOrder(5)
    first, second = (
        next(MicroBatchLoader(data, order, plan, 0, num_workers=n).micro_batches(0, 1))
        for data, n in ((in_memory, 0), (on_disk, 1))
    )
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.targets, second.targets)


def test_image_folders_number_sorted_classes_and_cut_the_centre(tmp_path: Path) -> None:
    images = image_folder(image_tree(tmp_path), "train", image_size=12, **RGB)
    assert isinstance(images, ArrayDataset)
    assert images.targets.tolist() == [0, 0, 0, 1, 1]
    # Sorted by name: a.JPG is 12 x 16, b.png 16 x 12: no resizing, only the middle of the long side.
    jpeg = by_pillow((tmp_path / "train/ant/a.JPG").read_bytes())
    assert torch.equal(images.inputs[0], jpeg[:, 2:14])
    assert torch.equal(images.inputs[1], by_pillow(encoded(0, size=(16, 12)))[:, :, 2:14])
    # 30 x 20 becomes 18 x 12, of which the columns 3..14 remain.
    small = pil.open(io.BytesIO(encoded(3, size=(30, 20)))).resize((18, 12), pil.Resampling.BILINEAR)
    assert np.array_equal(images.inputs[3].numpy().transpose(1, 2, 0), np.asarray(small)[:, 3:15])
    assert images.inputs[4].shape == (3, 12, 12)  # enlarged from 6 x 9
    validation = image_folder(tmp_path, "validation", image_size=12, **RGB)
    assert (len(validation), validation.num_classes, validation[0][1]) == (1, 2, 1)


@pytest.mark.bad_input("data that are missing, empty or damaged")
def test_faults_of_an_image_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder train"):
        image_folder(tmp_path, "train", image_size=4, **RGB)
    root = image_tree(tmp_path)
    with pytest.raises(ValueError, match="image_size=0"):
        image_folder(root, "train", image_size=0, **RGB)
    (root / "val/cat").mkdir()
    with pytest.raises(DataError, match="class 'cat' does not occur"):
        image_folder(root, "validation", image_size=4, **RGB)
    (root / "train/ant/b.png").write_bytes(b"broken")
    for limit in (10**6, 0):
        with pytest.raises(DataError, match=r"ant/b\.png: not a readable image"):
            list(iter(image_folder(root, "train", image_size=4, max_bytes_in_memory=limit, **RGB)))  # type: ignore[call-overload]
    (root / "train/dog").mkdir()
    with pytest.raises(DataError, match=r"train/dog: no image\. Remove"):
        image_folder(root, "train", image_size=4, **RGB)


def test_hub_images_read_a_local_folder_as_parquet_images_do(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("datasets", reason='hub names need datasets: pip install "largebatch[hf]"')
    cache = str(tmp_path_factory.mktemp("cache"))
    for split in ("train", "validation"):
        ours = parquet_images(folder, split, **RGB)  # type: ignore[arg-type]
        theirs = hub_images(str(folder), split, cache_dir=cache, **RGB)  # type: ignore[arg-type]
        assert torch.equal(ours.inputs, theirs.inputs)
        assert torch.equal(ours.targets, theirs.targets)
        assert ours.num_classes == theirs.num_classes
    with pytest.raises(DataError, match="no column 'coarse'; it has: img, label"):
        hub_images(str(folder), "train", cache_dir=cache, label_column="coarse", **RGB)
    with pytest.raises(DataError, match="load_dataset failed"):
        hub_images(str(folder / "empty"), "train", cache_dir=cache, **RGB)


@pytest.mark.skipif(
    not os.environ.get("LARGEBATCH_CIFAR10"),
    reason="set LARGEBATCH_CIFAR10 to a folder with CIFAR-10 as Hugging Face parquet files",
)
def test_cifar10_has_its_published_counts_and_statistics() -> None:
    path = os.environ["LARGEBATCH_CIFAR10"]
    validation = parquet_images(path, "validation", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    assert validation.inputs.shape == (10_000, 3, 32, 32)
    assert torch.bincount(validation.targets).tolist() == [1000] * 10
    # The published statistics are those of the training images, the test images differ by less than 0.02.
    images, _ = validation.fetch(np.arange(10_000))
    assert images.mean((0, 2, 3)).abs().max() < 0.05
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.05
