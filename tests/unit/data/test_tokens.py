from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from largebatch.data import DataError, TokenWindows, token_stream

TEXT = "hello world, this is a text"  # 27 characters


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "input.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def test_windows_are_the_hand_computed_slices_of_the_bytes(text_file: Path) -> None:
    windows = token_stream(text_file, "train", context_length=5, validation_fraction=0.0, tokenizer="bytes")
    assert windows.vocab_size == 256
    assert len(windows) == 5  # (27 - 1) // 5
    inputs, targets = windows.fetch(np.array([4, 0]))
    assert [bytes(row.tolist()) for row in inputs] == [b" a te", b"hello"]
    assert [bytes(row.tolist()) for row in targets] == [b"a tex", b"ello "]
    assert inputs.dtype == targets.dtype == torch.int64


def test_every_token_but_the_first_is_a_target_at_most_once_and_only_a_short_tail_is_lost() -> None:
    for length, context in ((9, 4), (10, 3), (7, 7 - 1), (100, 1)):
        windows = TokenWindows(np.arange(length), context_length=context, vocab_size=length)
        _, targets = windows.fetch(np.arange(len(windows)))
        used = targets.flatten().tolist()
        assert used == list(range(1, len(used) + 1))
        assert 0 <= length - 1 - len(used) < context


def test_characters_are_numbered_by_the_sorted_vocabulary_of_the_whole_file(text_file: Path) -> None:
    train = token_stream(text_file, "train", context_length=4, tokenizer="characters")
    validation = token_stream(text_file, "validation", context_length=2, tokenizer="characters")
    assert train.characters == validation.characters == "".join(sorted(set(TEXT)))
    assert train.vocab_size == len(set(TEXT))
    vocabulary = train.characters or ""
    decoded = "".join(vocabulary[i] for i in train.fetch(np.arange(len(train)))[0].flatten())
    assert decoded == TEXT[:20]
    # int(0.9 x 27) = 24 characters train, the last 3 validate.
    assert [vocabulary[i] for i in validation[0][0]] == ["e", "x"]
    assert [vocabulary[i] for i in validation[0][1]] == ["x", "t"]


def test_characters_beyond_ascii_are_one_token_each(tmp_path: Path) -> None:
    file = tmp_path / "unicode.txt"
    file.write_text("aé😀é", encoding="utf-8")
    windows = token_stream(file, "train", context_length=3, validation_fraction=0.0, tokenizer="characters")
    assert windows.characters == "aé😀"
    assert windows[0][0].tolist() == [0, 1, 2]
    assert windows[0][1].tolist() == [1, 2, 1]


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_token_files_are_read_through_a_memory_map(tmp_path: Path, suffix: str) -> None:
    tokens = np.array([0, 300, 50256, 4, 5, 6, 7], dtype=np.uint16)
    file = tmp_path / f"tokens{suffix}"
    np.save(file, tokens) if suffix == ".npy" else tokens.astype("<u2").tofile(file)
    windows = token_stream(file, "train", context_length=3, validation_fraction=0.0, vocab_size=50257)
    with file.open("r+b") as opened:
        opened.seek(-6, os.SEEK_END)
        opened.write(np.array([9], dtype="<u2").tobytes())  # seen by what has not been read yet
    inputs, targets = windows.fetch(np.array([0, 1]))
    assert inputs.tolist() == [[0, 300, 50256], [4, 9, 6]]
    assert targets.tolist() == [[300, 50256, 4], [9, 6, 7]]
    whole = token_stream(file, "validation", context_length=3, validation_fraction=1.0, vocab_size=50257)
    assert len(whole) == 2


@pytest.mark.bad_input("a vocabulary or a context beyond the model's")
def test_a_token_outside_the_vocabulary_is_refused_or_on_request_an_error_of_its_window(tmp_path: Path) -> None:
    file = tmp_path / "tokens.npy"
    np.save(file, np.array([1, 2, 3, 99, 5], dtype=np.int64))
    with pytest.raises(DataError, match=r"tokens\.npy: read as int64, it has tokens from 1 to 99, outside \[0, 50\)"):
        token_stream(file, "train", context_length=2, validation_fraction=0.0, vocab_size=50)
    windows = token_stream(
        file, "train", context_length=2, validation_fraction=0.0, vocab_size=50, on_bad_sample="skip"
    )
    with pytest.raises(DataError, match=r"window 1: tokens from 3 to 99, outside \[0, 50\)"):
        windows.fetch(np.array([0, 1]))


@pytest.mark.parametrize("bad", [-1, 5])
def test_a_window_outside_the_stream_is_refused(text_file: Path, bad: int) -> None:
    windows = token_stream(text_file, "train", context_length=5, validation_fraction=0.0, tokenizer="bytes")
    with pytest.raises(IndexError):
        windows.fetch(np.array([0, bad]))
    with pytest.raises(IndexError):
        windows[bad]


@pytest.mark.bad_input("data that are missing, empty or damaged")
@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", b"short", {"context_length": 5, "tokenizer": "bytes"}, r"a\.txt.*4 tokens are too few.*at most 3"),
        ("a.txt", b"", {"context_length": 5, "tokenizer": "bytes"}, "empty"),
        ("a.txt", b"abc\xff", {"context_length": 1, "tokenizer": "characters"}, "not UTF-8 at byte 3"),
        ("a.txt", b"abc", {"context_length": 1}, "'bytes' or 'characters'"),
        ("a.txt", b"abc", {"context_length": 1, "tokenizer": "gpt2"}, "'bytes' or 'characters'"),
        ("a.txt", b"abc", {"context_length": 0, "tokenizer": "bytes"}, "context_length=0"),
        ("a.txt", b"abc", {"context_length": 1, "tokenizer": "bytes", "vocab_size": 9}, "vocab_size=9 has no effect"),
        ("a.txt", b"abc", {"context_length": 1, "validation_fraction": 1.5}, "validation_fraction=1.5"),
        ("a.bin", b"abc", {"context_length": 1, "vocab_size": 9}, "3 bytes"),
        ("a.bin", b"abcd", {"context_length": 1}, "vocab_size"),
        ("a.bin", b"abcd", {"context_length": 1, "vocab_size": 9, "tokenizer": "bytes"}, "no tokenizer"),
        ("a.npy", b"abcd", {"context_length": 1, "vocab_size": 9}, "not a .npy file"),
        ("missing.txt", None, {"context_length": 1, "tokenizer": "bytes"}, "no such file"),
    ],
)
def test_bad_streams_are_refused(tmp_path: Path, name: str, content: bytes, options: dict, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        token_stream(tmp_path / name, "train", **options)


@pytest.mark.parametrize("array", [np.zeros((2, 2), dtype=np.int64), np.zeros(4)])
def test_an_array_that_is_no_stream_of_integers_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match="integers of shape"):
        token_stream(tmp_path / "a.npy", "train", context_length=1, vocab_size=9)


def test_a_pickled_array_is_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"not a \.npy file of numbers"):
        token_stream(tmp_path / "a.npy", "train", context_length=1, vocab_size=9)
