"""Which files a stream of tokens is read from, and in which order."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from largebatch.data.errors import DataError, Split
from largebatch.data.files import Scan

SUFFIXES = (".npy", ".bin")
_SPLIT_WORDS = {"train": {"train", "training"}, "validation": {"val", "valid", "validation"}}


@dataclass(frozen=True)
class TokenFiles:
    """Which files a split is read from.

    Attributes:
        files: in their order.
        is_whole: whether they are of this split alone, by their names; else it has a share of their tokens.
        notes: what is to be told before a training.
    """

    files: list[Path]
    is_whole: bool
    notes: list[str]


def find_files(path: str | Path | Sequence[str | Path], split: Split) -> TokenFiles:
    """The files that `path` names: a file, a folder, a pattern such as shards/*.bin, or a list of these.

    Of a folder or pattern they are sorted by path; a list keeps its order. Where some of several files are called
    train and others val, each split has its own.

    Raises:
        DataError: if there are none, or some of several are called neither.
    """
    entries = [path] if isinstance(path, (str, Path)) else list(path)
    files: list[Path] = []
    notes: list[str] = []
    for entry in entries:
        found, told = _files_of(entry)
        files += found
        notes += told
    if len(files) == 1:
        return TokenFiles(files, is_whole=False, notes=notes)
    named = {one: [file for file in files if _words(file) & words] for one, words in _SPLIT_WORDS.items()}
    is_whole = all(named.values())
    if is_whole:
        if others := [str(file) for file in files if file not in named["train"] + named["validation"]]:
            raise DataError(
                f"{others[0]}: {len(others)} of {len(files)} files are called neither train nor val as the others are. "
                "Name the files of each split: data.train.path and data.validation.path."
            )
        files = named[split]
    shown = ", ".join(str(file) for file in files[:4]) + (", ..." if len(files) > 4 else "")
    return TokenFiles(files, is_whole, [f"{len(files)} files, in this order: {shown}", *notes])


def is_token_file(file: Path) -> bool:
    """Whether it holds tokens, by its name; else it is text."""
    return file.suffix.lower() in SUFFIXES


def _files_of(entry: str | Path) -> tuple[list[Path], list[str]]:
    file = Path(entry)
    if file.is_file():
        return [file], []
    if file.is_dir():
        scan = Scan((*SUFFIXES, ".idx"))  # an index is read with its file
        found = [one for one in scan.below(file) if is_token_file(one)]
        if not found:
            raise DataError(f"{file}: no {' or '.join(SUFFIXES)} file in this folder{scan.told_of(file)}.")
        return found, scan.notes(file)
    if glob.has_magic(str(entry)):
        found = [Path(one) for one in sorted(glob.glob(str(entry), recursive=True)) if Path(one).is_file()]
        if not found:
            raise DataError(f"{entry}: no file has such a name.")
        return found, []
    raise DataError(f"{file}: no such file. A stream of tokens is text, .npy or .bin files, a folder, or a pattern.")


def _words(file: Path) -> set[str]:
    return set(re.split(r"[^a-z]+", file.stem.lower()))
