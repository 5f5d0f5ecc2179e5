"""Read token files: their headers and types, and a check of the vocabulary."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from largebatch.data.errors import DataError

Tokens = npt.NDArray[Any]

# Magic numbers: the first integer of a header of 256; the third is the number of tokens. The scripts of llm.c write
# these, those of modded-nanogpt the first one.
_HEADER_TYPES = {20240520: "uint16", 20240801: "uint32"}
_HEADER_BYTES = 256 * 4
# Megatron's index beside a file of tokens: 9 magic bytes, the version, the code of a type.
_INDEX_MAGIC = b"MMIDIDX\x00\x00"
_INDEX_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
_OTHER_FORMATS = {
    b"\x93NUMPY": "an array of numpy (name it .npy)",
    b"PK\x03\x04": "a zip archive (.npz, or a file of torch.save)",
    b"\x1f\x8b\x08": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ": "compressed with xz",
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    b"LITPKDS": "a PackedDataset of lit-gpt",
}
_MOST_SCANNED = 2**26  # tokens of all files together: a tenth of a second


def refuse_other_format(file: Path) -> None:
    """Raise DataError if the first bytes of a file belong to a format that is neither text nor tokens."""
    with file.open("rb") as opened:
        start = opened.read(16)
    for magic, other in _OTHER_FORMATS.items():
        if start.startswith(magic) and not (file.suffix.lower() == ".npy" and magic == b"\x93NUMPY"):
            raise DataError(
                f"{file}: is {other}, not text or bare tokens. Unpack it, or write its tokens to a .npy file."
            )


def read_tokens(
    file: Path, *, vocab_size: int, dtype: str | None, most_scanned: int, skips: bool
) -> tuple[Tokens, str | None]:
    """The tokens of a file, memory-mapped, and a note on how they are read.

    Args:
        file: `.npy` or `.bin`, see `token_stream`.
        vocab_size: tokens must lie in [0, vocab_size); some blocks are checked here.
        dtype: type of a `.bin` file; None: see `token_stream`.
        most_scanned: number of tokens to check.
        skips: do not check the vocabulary here, but when a window is fetched.

    Raises:
        DataError: if the file has another format, or tokens outside the vocabulary.
    """
    if file.suffix.lower() == ".npy":
        tokens, note, is_guess = _from_npy(file), None, False
    else:
        tokens, note, is_guess = _from_bin(file, vocab_size, dtype)
    if not skips:
        _check_range(file, tokens, vocab_size, most_scanned)
    if is_guess:
        _check_guess(file, tokens)
    return tokens, note


def most_scanned(num_files: int) -> int:
    """Number of tokens that `read_tokens` checks in each of `num_files` files."""
    return max(2**16, _MOST_SCANNED // num_files)


def _from_npy(file: Path) -> Tokens:
    try:
        tokens: Tokens = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{file}: not a .npy file of numbers ({error}).") from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"{file}: {tokens.dtype} of shape {tokens.shape}. Tokens must be integers of shape [L].")
    return tokens


def _from_bin(file: Path, vocab_size: int, dtype: str | None) -> tuple[Tokens, str | None, bool]:
    """Tokens, a note, and whether the type is a guess from the vocabulary."""
    if (index := file.with_suffix(".idx")).is_file():
        return _mapped(file, _agreed(file, dtype, _type_in_index(index))), f"type as in {index.name}", False
    if (header := _header(file)) is not None:
        magic, count = header
        dtype = _agreed(file, dtype, _HEADER_TYPES.get(magic))
        tokens = _mapped(file, dtype, offset=_HEADER_BYTES)
        if len(tokens) != count:
            raise DataError(
                f"{file}: its header says {count} tokens, but {len(tokens)} of {dtype} follow. Copy it again."
            )
        return tokens, f"header of 256 integers, then {dtype}", False
    if dtype is not None:
        return _mapped(file, dtype), None, False
    refuse_other_format(file)
    if file.name.startswith("chunk-") and (file.parent / "index.json").is_file():
        raise DataError(f"{file}: is a chunk of a litdata set, not bare tokens. Write its tokens to a .npy file.")
    guess = "uint16" if vocab_size <= 2**16 else "uint32"
    return _mapped(file, guess), None if guess == "uint16" else f"{guess}, as vocab_size={vocab_size} needs", True


def _header(file: Path) -> tuple[int, int] | None:
    """(magic number, number of tokens) of a file with a header of 256 integers, all but three 0; else None."""
    if file.stat().st_size < _HEADER_BYTES:
        return None
    header = np.fromfile(file, dtype="<i4", count=256)
    is_one = header[0] in _HEADER_TYPES or (header[0] > 2**24 and 0 < header[1] < 2**16 and header[2] > 0)
    return (int(header[0]), int(header[2])) if is_one and not header[3:].any() else None


def _type_in_index(index: Path) -> str | None:
    with index.open("rb") as opened:
        start = opened.read(18).ljust(18, b"\0")
    if not start.startswith(_INDEX_MAGIC):
        raise DataError(
            f"{index}: lies beside a token file but is not an index of Megatron ({start[:9]!r}). Remove it."
        )
    version, code = struct.unpack("<QB", start[9:18])
    if version != 1 or code not in _INDEX_TYPES:
        raise DataError(f"{index}: version {version} with tokens of type {code}, not version 1 with integers.")
    return _INDEX_TYPES[code]


def _agreed(file: Path, stated: str | None, found: str | None) -> str:
    """The type to read a file as. At least one of the two must be known, and they must agree."""
    if found is None and stated is None:
        raise DataError(
            f"{file}: begins with a header of 256 integers of an unknown kind. State the type of its tokens: "
            "dtype=uint16."
        )
    if stated is not None and found is not None and stated != found:
        raise DataError(f"{file}: dtype={stated}, but the file says {found}. Remove dtype.")
    return stated or found or ""


def _mapped(file: Path, dtype: str, *, offset: int = 0) -> Tokens:
    kind = np.dtype(dtype).newbyteorder("<")
    size = file.stat().st_size - offset
    if size <= 0 or size % kind.itemsize:
        raise DataError(f"{file}: {size} bytes are not a whole number of {dtype} tokens above zero.")
    return np.memmap(file, dtype=kind, mode="r", offset=offset)


def _blocks(tokens: Tokens, most: int) -> list[Tokens]:
    """All tokens, or `most` of them in 64 blocks spread over the file, including its end."""
    if len(tokens) <= most:
        return [tokens]
    size = most // 64
    return [tokens[start : start + size] for start in np.linspace(0, len(tokens) - size, 64).astype(np.int64).tolist()]


def _check_range(file: Path, tokens: Tokens, vocab_size: int, most: int) -> None:
    blocks = _blocks(tokens, most)
    smallest, largest = min(int(block.min()) for block in blocks), max(int(block.max()) for block in blocks)
    if smallest >= 0 and largest < vocab_size:
        return
    fitting = "" if file.suffix.lower() == ".npy" else _fitting_types(file, tokens, vocab_size)
    raise DataError(
        f"{file}: read as {tokens.dtype}, it has tokens from {smallest} to {largest}, outside [0, {vocab_size}). "
        f"Pass the vocab_size of the tokenizer that wrote the file{fitting}."
    )


def _fitting_types(file: Path, tokens: Tokens, vocab_size: int) -> str:
    """A remedy that names the other types under which the first tokens lie in the vocabulary."""
    start = np.asarray(tokens[: 2**16]).tobytes()
    candidates = ["uint8"] * (vocab_size <= 2**8) + ["uint16", "uint32", "int64"]
    others = [one for one in candidates if np.dtype(one) != tokens.dtype]
    fitting = [one for one in others if _fits(start, one, vocab_size)]
    return f", or its type: with dtype={' or dtype='.join(fitting)} they would lie in it" if fitting else ""


def _fits(start: bytes, dtype: str, vocab_size: int) -> bool:
    values = np.frombuffer(start[: len(start) // 8 * 8], dtype=np.dtype(dtype).newbyteorder("<"))
    return len(values) > 0 and int(values.min()) >= 0 and int(values.max()) < vocab_size


def _check_guess(file: Path, tokens: Tokens) -> None:
    """Refuse a type that is too narrow: every second token, or three in four, would be 0."""
    start = np.asarray(tokens[: 2**16])
    if len(start) >= 64 and not start[1::2].any() and start[::2].any():
        wider = "uint32" if tokens.dtype.itemsize == 2 and start[2::4].any() else "int64"
        raise DataError(
            f"{file}: read as {tokens.dtype}, every second token is 0: the type seems to be wider. State it: "
            f"dtype={wider}, or dtype={tokens.dtype} if that is intended."
        )
