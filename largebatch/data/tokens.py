"""Text and token files as windows for next-token prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from largebatch.data.array import Int64Array
from largebatch.data.errors import DataError, Split, check_split

Tokenizer = Literal["bytes", "characters"]


class TokenWindows(Dataset[tuple[Tensor, Tensor]]):
    """Non-overlapping windows over one stream of tokens; targets are the inputs shifted by one.

    Window i has the inputs `tokens[i T : (i + 1) T]` and the targets `tokens[i T + 1 : (i + 1) T + 1]`, T the
    context length: every token but the first is a target at most once. A last part shorter than T + 1 is not used.

    Args:
        tokens: integers [L]; may be a memory map: only the windows that are fetched are read.
        context_length: T, tokens per window.
        vocab_size: tokens lie in [0, vocab_size).
        characters: for character tokens, the vocabulary: token i stands for characters[i].

    Raises:
        DataError: if the stream is too short for one window; from `fetch`, if a token lies outside the vocabulary.

    >>> windows = TokenWindows(np.arange(8), context_length=3, vocab_size=8)
    >>> windows.fetch(np.array([1, 0]))
    (tensor([[3, 4, 5],
            [0, 1, 2]]), tensor([[4, 5, 6],
            [1, 2, 3]]))
    """

    def __init__(
        self, tokens: npt.NDArray[Any], *, context_length: int, vocab_size: int, characters: str | None = None
    ) -> None:
        if context_length < 1:
            raise ValueError(f"context_length={context_length}: tokens per window, at least 1.")
        if vocab_size < 1:
            raise ValueError(f"vocab_size={vocab_size}: number of different tokens, at least 1.")
        if len(tokens) <= context_length:
            raise DataError(
                f"{len(tokens)} tokens are too few for context_length={context_length}: a window and its shifted "
                f"targets take {context_length + 1}. Use a context of at most {max(len(tokens) - 1, 0)}, or more text."
            )
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.characters = characters
        self._tokens = tokens

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self.context_length

    @property
    def label_range(self) -> tuple[int, int]:
        """Smallest and largest token that may occur."""
        return 0, self.vocab_size - 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        inputs, targets = self.fetch(np.array([index]))
        return inputs[0], targets[0]

    def fetch(self, ids: Int64Array) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the windows `ids`, int64 [n, context_length] each."""
        if ids.size and not (ids.min() >= 0 and ids.max() < len(self)):
            raise IndexError(f"windows {ids.min()} to {ids.max()} of {len(self)}")
        places = ids[:, None] * self.context_length + np.arange(self.context_length + 1)
        windows = self._tokens[places].astype(np.int64)
        if windows.size and not (windows.min() >= 0 and windows.max() < self.vocab_size):
            row = int(np.flatnonzero(((windows < 0) | (windows >= self.vocab_size)).any(axis=1))[0])
            raise DataError(
                f"window {ids[row]}: tokens from {windows[row].min()} to {windows[row].max()}, outside "
                f"[0, {self.vocab_size}). Pass the vocab_size of the tokenizer that wrote the file."
            )
        pairs = torch.from_numpy(windows)
        return pairs[:, :-1].contiguous(), pairs[:, 1:].contiguous()


def token_stream(
    path: str | Path,
    split: Split,
    *,
    context_length: int,
    validation_fraction: float = 0.1,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
) -> TokenWindows:
    """Windows of a text file, or of a file of tokens.

    Args:
        path: `.npy`: integers [L]. `.bin`: uint16, little-endian, no header, as nanoGPT writes them. Any other
            name: text. Token files, and text read as bytes, are memory-mapped.
        split: "train" is the first part of the file, "validation" the rest.
        context_length: tokens per window.
        validation_fraction: share of the tokens at the end held out; 0 and 1 give the whole file to one split.
        tokenizer: for text, "bytes" (vocabulary 256) or "characters" (UTF-8; the sorted characters of the whole
            file). A token file has none.
        vocab_size: for a token file, the number of different tokens of its tokenizer. Text has its own.

    Raises:
        DataError: if the file is missing, not of its format, or shorter than one window.
        ValueError: if an argument is missing, has no effect or lies outside its range.
    """
    check_split(split)
    if not 0 <= validation_fraction <= 1:
        raise ValueError(f"validation_fraction={validation_fraction}: a share of the tokens, in [0, 1].")
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file. A stream of tokens is one file: text, .npy or .bin (uint16).")
    characters = None
    if file.suffix in (".npy", ".bin"):
        if tokenizer is not None or vocab_size is None:
            raise ValueError(
                f"{file}: a token file takes vocab_size (here {vocab_size}), the size its tokenizer had, and no "
                f"tokenizer (here {tokenizer!r}): tokenising is done."
            )
        tokens = _read_tokens(file)
    else:
        if vocab_size is not None:
            raise ValueError(f"{file}: vocab_size={vocab_size} has no effect on text, which has its own. Leave it out.")
        tokens, characters = _tokenize(file, tokenizer)
        vocab_size = 256 if characters is None else len(characters)
    boundary = int(len(tokens) * (1 - validation_fraction))
    part = tokens[:boundary] if split == "train" else tokens[boundary:]
    try:
        return TokenWindows(part, context_length=context_length, vocab_size=vocab_size, characters=characters)
    except DataError as error:
        raise DataError(
            f"{file}, split {split!r} with validation_fraction={validation_fraction} of {len(tokens)} tokens: {error}"
        ) from None


def _read_tokens(file: Path) -> npt.NDArray[Any]:
    if file.suffix == ".bin":
        if file.stat().st_size % 2 or file.stat().st_size == 0:
            raise DataError(f"{file}: {file.stat().st_size} bytes are not a whole number of uint16 tokens above zero.")
        return np.memmap(file, dtype="<u2", mode="r")
    try:
        tokens = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{file}: not a .npy file of numbers ({error}).") from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"{file}: {tokens.dtype} of shape {tokens.shape}. A stream of tokens is integers of shape [L].")
    return tokens


def _tokenize(file: Path, tokenizer: str | None) -> tuple[npt.NDArray[Any], str | None]:
    if tokenizer not in ("bytes", "characters"):
        raise ValueError(f"tokenizer={tokenizer!r}: text is read as 'bytes' or as 'characters'.")
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty.")
    if tokenizer == "bytes":
        return np.memmap(file, dtype=np.uint8, mode="r"), None
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}. Convert it, or use tokenizer='bytes'.") from error
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    vocabulary, tokens = np.unique(code_points, return_inverse=True)
    return tokens.astype(np.uint32), "".join(map(chr, vocabulary.tolist()))
