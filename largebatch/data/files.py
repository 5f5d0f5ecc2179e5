"""Scan folders for data files, and count the files that are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

# Files and folders without a leading dot that macOS archives, Synology and Windows create everywhere.
_LEFT_BY_SYSTEMS = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"})
_MOST_SHOWN = 4


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not data: its name starts with a dot, or an operating system creates it."""
    return name.startswith(".") or name in _LEFT_BY_SYSTEMS


class Scan:
    """Finds files with given suffixes recursively, and counts the files that it leaves out.

    Args:
        suffixes: in lower case, with their dot; the case of a file's suffix does not matter.
    """

    def __init__(self, suffixes: Iterable[str]) -> None:
        self._suffixes = frozenset(suffixes)
        self._left_out: dict[Path, str] = {}

    def below(self, folder: Path) -> list[Path]:
        """The files, sorted by path. Links are followed, except to a folder above them."""
        return sorted(self._below(folder, frozenset()))

    def leave_out(self, entries: Iterable[Path]) -> None:
        """Count entries that lie outside the scanned folders."""
        self._left_out |= {entry: "hidden" if is_hidden(entry.name) else "beside the folders" for entry in entries}

    def notes(self, folder: Path) -> list[str]:
        """The files left out, in at most one line."""
        counts = self._counted(self._left_out.values())
        return [f"{folder}: left out {counts}"] if counts else []

    def left_out_below(self, folder: Path) -> str:
        """The files left out below a folder, in parentheses; empty if there are none."""
        counts = self._counted(kind for entry, kind in self._left_out.items() if entry.is_relative_to(folder))
        return f" (left out: {counts})" if counts else ""

    def _below(self, folder: Path, above: frozenset[str]) -> list[Path]:
        real = os.path.realpath(folder)
        if real in above:
            self._left_out[folder] = "leading back"
            return []
        files: list[Path] = []
        with os.scandir(folder) as entries:  # recognises folders without a stat per file
            for entry in entries:
                path = folder / entry.name
                if is_hidden(entry.name):
                    self._left_out[path] = "hidden"
                elif entry.is_dir():
                    files += self._below(path, above | {real})
                elif path.suffix.lower() in self._suffixes:
                    files.append(path)
                else:
                    self._left_out[path] = path.suffix.lower() or "without suffix"
        return files

    @staticmethod
    def _counted(kinds: Iterable[str]) -> str:
        counts = sorted(Counter(kinds).items(), key=lambda one: (-one[1], one[0]))
        shown = [f"{count} {kind}" for kind, count in counts[:_MOST_SHOWN]]
        rest = sum(count for _, count in counts[_MOST_SHOWN:])
        return ", ".join([*shown, *([f"{rest} more"] if rest else [])])
