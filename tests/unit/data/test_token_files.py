"""Token files as the programs that write them mean them. Truths: the tokens that were written."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largebatch.data import DataError, token_stream

WHOLE: dict[str, Any] = {"context_length": 16, "validation_fraction": 0.0}


def drawn(vocab_size: int, count: int = 400, seed: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(0, vocab_size, count)
    tokens[:2] = 0, vocab_size - 1
    return tokens


def read(path: Any, vocab_size: int, split: Any = "train", **options: Any) -> np.ndarray:
    """All tokens of the windows, first inputs, then the last target of each window."""
    windows = token_stream(path, split, vocab_size=vocab_size, **(WHOLE | options))
    inputs, _ = windows.fetch(np.arange(len(windows)))
    return inputs.numpy().reshape(-1)


def assert_written(found: np.ndarray, tokens: np.ndarray) -> None:
    assert np.array_equal(found, tokens[: (len(tokens) - 1) // 16 * 16])


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "stated"),
    [
        (50_257, "<u2", None),
        (65_536, "<u2", None),
        (65_537, "<u4", None),
        (128_256, "<u4", None),
        (50_257, "<u4", "uint32"),
        (50_257, "<i4", "int32"),
        (128_256, "<i8", "int64"),
        (200, "u1", "uint8"),
        (200, "<u2", None),
    ],
)
def test_bare_tokens_are_as_wide_as_their_vocabulary_needs_or_as_stated(
    tmp_path: Path, vocab_size: int, dtype: str, stated: str | None
) -> None:
    tokens = drawn(vocab_size)
    tokens.astype(dtype).tofile(tmp_path / "a.bin")
    assert_written(read(tmp_path / "a.bin", vocab_size, dtype=stated), tokens)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4"])
def test_an_array_says_its_type_itself(tmp_path: Path, dtype: str) -> None:
    tokens = drawn(200)
    np.save(tmp_path / "a.npy", tokens.astype(dtype))
    assert_written(read(tmp_path / "a.npy", 200), tokens)
    with pytest.raises(ValueError, match="dtype=uint16 has no effect"):
        read(tmp_path / "a.npy", 200, dtype="uint16")


@pytest.mark.parametrize(
    ("written", "vocab_size", "told"),
    [
        ("<u4", 50_257, r"every second token is 0: the type seems to be wider.*dtype=uint32, or dtype=uint16"),
        ("<i8", 50_257, "every second token is 0.*dtype=int64, or dtype=uint16"),
        ("<i8", 128_256, "every second token is 0.*dtype=int64, or dtype=uint32"),
        ("<u2", 128_256, r"read as uint32, it has tokens from .*outside \[0, 128256\).*with dtype=uint16 they would"),
        ("u1", 200, r"read as uint16.*with dtype=uint8 they would lie in it"),
    ],
)
def test_a_type_that_the_vocabulary_does_not_tell_is_noticed(
    tmp_path: Path, written: str, vocab_size: int, told: str
) -> None:
    drawn(min(vocab_size, 200 if written == "u1" else 50_257)).astype(written).tofile(tmp_path / "a.bin")
    with pytest.raises(DataError, match=told):
        read(tmp_path / "a.bin", vocab_size)


def with_header(tokens: np.ndarray, magic: int, version: int, dtype: str, *, count: int | None = None) -> bytes:
    """As `write_datafile` of llm.c does it."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    return header.tobytes() + tokens.astype(dtype).tobytes()


@pytest.mark.parametrize(("magic", "version", "dtype"), [(20240520, 1, "<u2"), (20240801, 7, "<u4")])
def test_headers_of_llm_c_are_read(tmp_path: Path, magic: int, version: int, dtype: str) -> None:
    tokens, file = drawn(50_257), tmp_path / "a.bin"
    file.write_bytes(with_header(tokens, magic, version, dtype))
    assert_written(read(file, 50_257), tokens)
    (note,) = token_stream(file, "train", vocab_size=50_257, **WHOLE).plan_notes
    assert note == f"{file}: header of 256 integers, then {np.dtype(dtype).name}"
    with pytest.raises(DataError, match=f"dtype=int64, but the file says {np.dtype(dtype).name}"):
        read(file, 50_257, dtype="int64")
    file.write_bytes(with_header(tokens, magic, version, dtype, count=401))
    with pytest.raises(DataError, match="its header says 401 tokens, but 400 of"):
        read(file, 50_257)


def test_a_header_of_an_unknown_kind_needs_a_stated_type(tmp_path: Path) -> None:
    tokens, file = drawn(50_257), tmp_path / "a.bin"
    file.write_bytes(with_header(tokens, 20270101, 1, "<u2"))
    with pytest.raises(DataError, match=r"header of 256 integers of an unknown kind\. State the type"):
        read(file, 50_257)
    assert_written(read(file, 50_257, dtype="uint16"), tokens)


def index_of(code: int, lengths: list[int], magic: bytes = b"MMIDIDX\x00\x00", version: int = 1) -> bytes:
    """As Megatron-LM's `_IndexWriter` does it."""
    count = len(lengths)
    start = magic + struct.pack("<QBQQ", version, code, count, count + 1)
    pointers = np.cumsum([0, *lengths[:-1]])
    return start + b"".join(
        np.asarray(one, dtype=kind).tobytes()
        for one, kind in ((lengths, "<i4"), (pointers, "<i8"), (range(count + 1), "<i8"))
    )


@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4"), (5, "<i8"), (1, "u1")])
def test_the_index_of_megatron_says_the_type(tmp_path: Path, code: int, dtype: str) -> None:
    tokens = drawn(200)
    tokens.astype(dtype).tofile(tmp_path / "a.bin")
    (tmp_path / "a.idx").write_bytes(index_of(code, [150, 250]))
    assert_written(read(tmp_path / "a.bin", 200), tokens)
    assert_written(read(tmp_path, 200), tokens)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        (index_of(7, [400]), "version 1 with tokens of type 7"),
        (index_of(8, [400], version=2), "version 2"),
        (index_of(8, [400], magic=b"TNTIDX\x00\x00\x00"), "not an index of Megatron"),
        (b"", "not an index of Megatron"),
    ],
)
def test_another_index_is_refused(tmp_path: Path, index: bytes, told: str) -> None:
    drawn(200).astype("<u2").tofile(tmp_path / "a.bin")
    (tmp_path / "a.idx").write_bytes(index)
    with pytest.raises(DataError, match=told):
        read(tmp_path / "a.bin", 200)


def other_formats() -> dict[str, bytes]:
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, drawn(200))
    np.savez(archive, tokens=drawn(200))
    return {"array of numpy": array.getvalue(), "zip": archive.getvalue(), "gzip": gzip.compress(b"a" * 999)}


@pytest.mark.parametrize("name", ["array of numpy", "zip", "gzip"])
def test_other_formats_are_neither_tokens_nor_text(tmp_path: Path, name: str) -> None:
    content = other_formats()[name]
    (tmp_path / "a.bin").write_bytes(content)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=name):
        read(tmp_path / "a.bin", 50_257)
    with pytest.raises(DataError, match=name):
        token_stream(tmp_path / "a.txt", "train", tokenizer="bytes", **WHOLE)


def shards(folder: Path, lengths: dict[str, int]) -> np.ndarray:
    """Files of these many tokens, numbered through; returns all of them."""
    tokens, start = np.arange(sum(lengths.values())), 0
    for name, length in lengths.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tokens[start : start + length].astype("<u2").tofile(folder / name)
        start += length
    return tokens


def windows_of(parts: list[np.ndarray]) -> list[list[int]]:
    """Of 4 inputs and a last target each, cut within each part."""
    return [part[i : i + 5].tolist() for part in parts for i in range(0, len(part) - 4, 4)]


def found(path: Any, split: Any, **options: Any) -> list[list[int]]:
    stream = token_stream(path, split, context_length=4, vocab_size=999, **options)
    inputs, targets = stream.fetch(np.arange(len(stream)))
    assert [stream[i][0].tolist() for i in range(len(stream))] == inputs.tolist()
    return [[*first.tolist(), int(last[-1])] for first, last in zip(inputs, targets, strict=True)]


@pytest.mark.parametrize("kind", ["folder", "pattern", "list", "mixed list"])
def test_windows_of_several_files_never_cross_from_one_to_the_next(tmp_path: Path, kind: str) -> None:
    tokens = shards(tmp_path, {"a.bin": 13, "b/1.bin": 3, "b/2.bin": 18, "c.bin": 6})
    parts = np.split(tokens, [13, 16, 34])
    path: Any = {
        "folder": tmp_path,
        "pattern": f"{tmp_path}/**/*.bin",
        "list": [tmp_path / name for name in ("a.bin", "b/1.bin", "b/2.bin", "c.bin")],
        "mixed list": [str(tmp_path / "a.bin"), str(tmp_path / "b"), f"{tmp_path}/c*"],
    }[kind]
    assert found(path, "train", validation_fraction=0.0) == windows_of(parts)
    # int(40 x 0.7) = 28 tokens train; the file that is cut is two streams.
    assert found(path, "train", validation_fraction=0.3) == windows_of([parts[0], parts[1], parts[2][:12]])
    assert found(path, "validation", validation_fraction=0.3) == windows_of([parts[2][12:], parts[3]])
    shuffled = token_stream(path, "train", context_length=4, vocab_size=999, validation_fraction=0.0)
    ids = np.array([5, 0, 7, 2])
    assert shuffled.fetch(ids)[0].tolist() == [windows_of(parts)[one][:4] for one in ids]
    order = f"a.bin, {tmp_path}/b/1.bin, {tmp_path}/b/2.bin, {tmp_path}/c.bin"
    assert shuffled.plan_notes[0] == f"4 files, in this order: {tmp_path}/{order}"


def test_files_called_train_and_val_are_the_splits(tmp_path: Path) -> None:
    """As nanoGPT lays them out."""
    tokens = shards(tmp_path, {"train.bin": 21, "val.bin": 14})
    (tmp_path / "meta.pkl").write_bytes(b"")
    train, validation = np.split(tokens, [21])
    assert found(tmp_path, "train") == windows_of([train])
    assert found(tmp_path, "validation") == windows_of([validation])
    stream = token_stream(tmp_path, "validation", context_length=4, vocab_size=999)
    assert any("left out 1 .pkl" in note for note in stream.plan_notes)
    with pytest.raises(ValueError, match=r"validation_fraction=0\.1 has no effect"):
        found(tmp_path, "train", validation_fraction=0.1)
    shards(tmp_path, {"more.bin": 9})
    with pytest.raises(DataError, match=r"more\.bin: 1 of 3 files have neither train nor val"):
        found(tmp_path, "train")


@pytest.mark.parametrize(
    ("train", "validation", "left_out"),
    [("train", "test", None), ("a_train_0", "a_val_0", "a_test_0"), ("train/0", "val/0", "test/0")],
)
def test_a_test_set_is_never_trained_on(tmp_path: Path, train: str, validation: str, left_out: str | None) -> None:
    sizes = {f"{name}.bin": 14 for name in (train, validation, left_out) if name}
    parts = dict(zip(sizes, np.split(shards(tmp_path, sizes), len(sizes)), strict=True))
    assert found(tmp_path, "train") == windows_of([parts[f"{train}.bin"]])
    assert found(tmp_path, "validation") == windows_of([parts[f"{validation}.bin"]])
    notes = token_stream(tmp_path, "train", context_length=4, vocab_size=999).plan_notes
    assert any("left out, because they are named test" in note for note in notes) == (left_out is not None)


def test_files_of_which_one_is_called_val_and_none_train_are_refused(tmp_path: Path) -> None:
    shards(tmp_path, {"0.bin": 14, "1.bin": 14, "val.bin": 14})
    with pytest.raises(DataError, match=r"0\.bin: 2 of 3 files have neither .*data\.train\.path"):
        found(tmp_path, "train")


def test_a_share_of_a_file_that_is_called_for_a_split_is_told(tmp_path: Path) -> None:
    shards(tmp_path, {"train.bin": 40})
    notes = token_stream(tmp_path / "train.bin", "train", context_length=4, vocab_size=999).plan_notes
    assert notes == (
        f"{tmp_path}/train.bin: the first 90% of the tokens are this split, train; validation_fraction=0 takes all",
    )


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("*.bin", "no file matches this pattern"),
        ("empty", r"no \.npy or \.bin file in this folder \(left out: 1 \.txt\)"),
        (["a.bin", "missing.bin"], "no such file"),
        (["a.bin", "text.txt"], "several files must all be"),
    ],
)
def test_paths_without_tokens_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("empty/a.txt").write_text("a")
    Path("text.txt").write_text("a" * 99)
    if "a.bin" in path:
        drawn(200).astype("<u2").tofile("a.bin")
    with pytest.raises(ValueError, match=told):
        read(path, 200)
