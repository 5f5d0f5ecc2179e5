"""Find the files of a token stream, and their order."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from largebatch.data.errors import DataError, Split
from largebatch.data.files import Scan

SUFFIXES = (".npy", ".bin")
# Files without a validation split are evaluated on their test split, as image folders are.
_SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"val", "valid", "validation"},
    "test": {"test", "testing", "dev", "eval", "heldout", "holdout"},
}


@dataclass(frozen=True)
class TokenFiles:
    """The files of a split.

    Attributes:
        files: the files, in order.
        is_whole: whether the split has all their tokens, as their names say; else it has a fraction of them.
        notes: notes that the plan prints before training.
    """

    files: list[Path]
    is_whole: bool
    notes: list[str]


def find_files(path: str | Path | Sequence[str | Path], split: Split) -> TokenFiles:
    """The files that `path` names: a file, a folder, a pattern such as shards/*.bin, or a list of these.

    Files of a folder or pattern are sorted by path; a list keeps its order. If the names of files or folders say train
    and val, each split has its own files. Files named test are the validation set if none is named val, and are left
    out otherwise.

    Raises:
        DataError: if there are no files, or only some of them name a split.
    """
    entries = [path] if isinstance(path, (str, Path)) else list(path)
    files: list[Path] = []
    notes: list[str] = []
    for entry in entries:
        found, found_notes = _files_of(entry)
        files += found
        notes += found_notes
    if len(files) == 1:
        return TokenFiles(files, is_whole=False, notes=notes)
    root = os.path.commonpath([file.absolute().parent for file in files])  # folders above it do not tell files apart
    splits_of = {file: _splits_of(os.path.relpath(file, root)) for file in files}
    named = {one: [file for file in files if one in splits_of[file]] for one in _SPLIT_WORDS}
    unnamed = [file for file in files if not splits_of[file]]
    if unnamed and (named["validation"] or named["test"]):
        raise DataError(
            f"{unnamed[0]}: {len(unnamed)} of {len(files)} files have neither train nor val in their names, as the "
            "others do. Name the files of each split: data.train.path and data.validation.path."
        )
    is_whole = sum(map(bool, named.values())) > 1
    if is_whole:
        splits = {"train": named["train"], "validation": named["validation"] or named["test"]}
        if not all(splits.values()):
            raise DataError(
                f"{path}: none of {len(files)} files is named train, but some are named val or test. Rename the "
                "training files, or name the files of each split: data.train.path and data.validation.path."
            )
        if left_out := [str(file) for file in files if file not in splits["train"] + splits["validation"]]:
            notes.append(f"left out, because they are named test: {', '.join(left_out[:4])}")
        files = splits[split]
    shown = ", ".join(str(file) for file in files[:4]) + (", ..." if len(files) > 4 else "")
    return TokenFiles(
        files, is_whole, [f"{len(files)} {'file' if len(files) == 1 else 'files, in this order'}: {shown}", *notes]
    )


def is_called_for_a_split(file: Path) -> bool:
    """Whether a file's name states its split."""
    return bool(_splits_of(file.name))


def is_token_file(file: Path) -> bool:
    """Whether a file holds tokens, judged by its suffix; other files are text."""
    return file.suffix.lower() in SUFFIXES


def _files_of(entry: str | Path) -> tuple[list[Path], list[str]]:
    file = Path(entry)
    if file.is_file():
        return [file], []
    if file.is_dir():
        scan = Scan((*SUFFIXES, ".idx"))  # an index is read with its file
        found = [one for one in scan.below(file) if is_token_file(one)]
        if not found:
            raise DataError(f"{file}: no {' or '.join(SUFFIXES)} file in this folder{scan.left_out_below(file)}.")
        return found, scan.notes(file)
    if glob.has_magic(str(entry)):
        found = [Path(one) for one in sorted(glob.glob(str(entry), recursive=True)) if Path(one).is_file()]
        if not found:
            raise DataError(f"{entry}: no file matches this pattern.")
        return found, []
    raise DataError(f"{file}: no such file. A stream of tokens is text, .npy or .bin files, a folder, or a pattern.")


def _splits_of(names: str | Path) -> set[str]:
    """Splits that a file's name states, or else the innermost folder above it that states one."""
    path = Path(names)
    for name in (path.stem, *reversed(path.parts[:-1])):
        words = set(re.split(r"[^a-z]+", name.lower()))
        if found := {split for split, own in _SPLIT_WORDS.items() if words & own}:
            return found
    return set()
