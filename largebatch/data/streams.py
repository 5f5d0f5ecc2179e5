"""Text and token files as sets of windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from largebatch.data.errors import DataError, OnBadSample, Split, check_on_bad_sample, check_split
from largebatch.data.token_files import Tokens, most_scanned, read_tokens, refuse_other_format
from largebatch.data.token_shards import find_files, is_called_for_a_split, is_token_file
from largebatch.data.tokens import TokenWindows

Tokenizer = Literal["bytes", "characters"]
TokenType = Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"]

_VALIDATION_FRACTION = 0.1


def token_stream(
    path: str | Path | Sequence[str | Path],
    split: Split,
    *,
    context_length: int,
    validation_fraction: float | None = None,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
    dtype: TokenType | None = None,
    on_bad_sample: OnBadSample = "stop",
    end_of_document: int | None = None,
    masks_starts: bool = False,
    separates: bool = False,
) -> TokenWindows:
    """Windows of a text file, or of files of tokens.

    Args:
        path: `.npy`: integers [L]. `.bin`: tokens, little-endian, with a header of llm.c, with an index of Megatron
            beside it (.idx), or bare. Any other name: text. Several token files are given as a folder, a pattern
            (shards/*.bin) or a list, see `find_files`; no window crosses from one file to the next. Token files, and
            text read as bytes, are memory-mapped.
        split: "train" is the first part of the tokens, "validation" the rest; or the files named after the split.
        context_length: tokens per window.
        validation_fraction: fraction of the tokens held out at the end, default 0.1; 0 and 1 give all to one split.
        tokenizer: for text, "bytes" (vocabulary 256) or "characters" (UTF-8; the sorted characters of the whole
            file). Not for token files.
        vocab_size: for token files, the vocabulary size of their tokenizer. Not for text.
        dtype: type of bare `.bin` tokens; None: uint16, or uint32 if `vocab_size` is above 65,536.
        end_of_document: token that ends each of the packed documents, see `TokenWindows`.
        masks_starts: whether their first tokens are no targets.
        separates: whether they do not see each other.
        on_bad_sample: as `data.on_bad_sample`; with "skip", a token outside the vocabulary raises only when its window
            is fetched.

    Raises:
        DataError: if a file is missing, has another format, or holds tokens outside the vocabulary (all tokens are
            checked, or a sample of more than 67 million), or all streams are shorter than one window.
        ValueError: if an argument is missing, has no effect or lies outside its range.
    """
    check_split(split)
    check_on_bad_sample(on_bad_sample)
    found = find_files(path, split)
    _check_fraction(validation_fraction, path, is_whole=found.is_whole)
    characters = None
    if all(map(is_token_file, found.files)):
        _require_tokens(found.files[0], tokenizer, vocab_size)
        assert vocab_size is not None
        streams, notes = _streams(found.files, vocab_size, dtype, skips=on_bad_sample == "skip")
    else:
        tokens, characters = _text(found.files, tokenizer, vocab_size, dtype)
        streams, notes, vocab_size = [tokens], [], 256 if characters is None else len(characters)
    total = sum(map(len, streams))
    fraction = _VALIDATION_FRACTION if validation_fraction is None else validation_fraction
    if not found.is_whole:
        boundary = int(total * (1 - fraction))
        if validation_fraction is None and is_called_for_a_split(found.files[0]):
            notes.append(_share(found.files[0], split))
        streams = _between(streams, 0, boundary) if split == "train" else _between(streams, boundary, total)
    options: dict[str, Any] = {"context_length": context_length, "vocab_size": vocab_size, "characters": characters}
    options |= {"end_of_document": end_of_document, "masks_starts": masks_starts, "separates": separates}
    try:
        return TokenWindows(streams, plan_notes=[*found.notes, *notes], **options)
    except DataError as error:
        share = "" if found.is_whole else f" with validation_fraction={fraction}"
        raise DataError(f"{path}, split {split!r}{share} of {total} tokens: {error}") from None


def _check_fraction(fraction: float | None, path: Any, *, is_whole: bool) -> None:
    if fraction is not None and not 0 <= fraction <= 1:
        raise ValueError(f"validation_fraction={fraction}: a fraction of the tokens must be in [0, 1].")
    if is_whole and fraction is not None:
        raise ValueError(
            f"validation_fraction={fraction} has no effect: the names of the files of {path} say train or val. "
            "Remove it."
        )


def _share(file: Path, split: Split) -> str:
    """Note on a file whose name says a split but of which only the default fraction is used."""
    first, last, all_of_it = 1 - _VALIDATION_FRACTION, _VALIDATION_FRACTION, int(split == "validation")
    part = f"the first {first:.0%}" if split == "train" else f"the last {last:.0%}"
    return f"{file}: {part} of the tokens are this split, {split}; validation_fraction={all_of_it} takes all"


def _require_tokens(file: Path, tokenizer: str | None, vocab_size: int | None) -> None:
    if tokenizer is not None or vocab_size is None:
        raise ValueError(
            f"{file}: a token file needs vocab_size (here {vocab_size}), the size of its tokenizer, and no tokenizer "
            f"(here {tokenizer!r}), since it is already tokenized."
        )


def _streams(
    files: Sequence[Path], vocab_size: int, dtype: str | None, *, skips: bool
) -> tuple[list[Tokens], list[str]]:
    """The tokens of every file, and notes on formats other than the default."""
    if dtype is not None and dtype not in get_args(TokenType):
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(get_args(TokenType))}.")
    if dtype is not None and all(file.suffix.lower() == ".npy" for file in files):
        raise ValueError(f"dtype={dtype} has no effect on {files[0]}: a .npy file states its own. Remove it.")
    streams, formats = [], []
    most = most_scanned(len(files))
    for file in files:
        tokens, how = read_tokens(file, vocab_size=vocab_size, dtype=dtype, most_scanned=most, skips=skips)
        streams.append(tokens)
        formats.append(how)
    return streams, [f"{files[formats.index(how)]}: {how}" for how in dict.fromkeys(formats) if how is not None]


def _between(streams: Sequence[Tokens], start: int, end: int) -> list[Tokens]:
    """Tokens `start` to `end` of the concatenated streams, still as separate streams."""
    parts, position = [], 0
    for stream in streams:
        part = stream[max(start - position, 0) : max(end - position, 0)]
        position += len(stream)
        if len(part):
            parts.append(part)
    return parts


def _text(
    files: Sequence[Path], tokenizer: str | None, vocab_size: int | None, dtype: str | None
) -> tuple[Tokens, str | None]:
    file = next(file for file in files if not is_token_file(file))
    if len(files) > 1:
        raise ValueError(f"{file}: several files must all be .npy or .bin. Join the texts, or write their tokens.")
    refuse_other_format(file)
    if vocab_size is not None or dtype is not None:
        given = f"vocab_size={vocab_size}" if dtype is None else f"dtype={dtype}"
        raise ValueError(f"{file}: {given} has no effect on text, which has its own. Remove it.")
    if tokenizer not in get_args(Tokenizer):
        raise ValueError(f"tokenizer={tokenizer!r}: text needs the tokenizer 'bytes' or 'characters'.")
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
