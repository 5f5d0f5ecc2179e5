"""Files of lines that a process appends to for days, whatever happens to their folder meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from largebatch.records.durable_files import (
    open_regular_to_write,
    require_regular,
    sync_names,
    where_is,
    write_all,
    write_whole,
)

_COPIED_BYTES = 2**20  # at a time


class LineFile:
    """Appends lines to a file, each as a whole or not at all.

    A line survives the death of the process when `append` returns, and the loss of power after `sync`. Whoever renames
    the folder takes the file along, and lines go on there. Where the file itself is removed or renamed, it comes back
    with all its lines; where another one took its place, lines go on in that one. Where its folder is removed, lines
    are kept for `come_back`. One writer at a time.

    Args:
        path: of the file; its folder is made if absent.

    Attributes:
        news: interventions in the file by others, one sentence each.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._folder = self._file = -1
        self._is_named = False  # on the disk, too
        self._is_torn = False  # it ends in the middle of a line
        self._end: int | None = None  # of the lines, where a part of one that failed could not be taken back
        self.news: list[str] = []

    def append(self, line: bytes) -> None:
        """Write one line, without its end.

        Raises:
            OSError: if it cannot be written; the lines before it are as they were.
        """
        self._ensure_in_place()
        size = os.fstat(self._file).st_size if self._end is None else self._end
        try:
            if self._end is not None:
                self._take_back()
            write_all(self._file, b"\n" * self._is_torn + line + b"\n")
        except BaseException:
            self._end = size
            with contextlib.suppress(OSError):  # tried again with the next line
                self._take_back()
            raise
        self._is_torn = False

    def sync(self) -> None:
        """Force all lines to the disk, if there are some; raises OSError if it refuses."""
        if self._file >= 0:
            self._ensure_in_place()
            os.fsync(self._file)
            if not self._is_named:
                sync_names(self._folder)
                self._is_named = True

    def come_back(self, path: Path) -> None:
        """Continue at `path` with all lines so far: for a folder that was removed and made anew.

        Raises:
            OSError: if it cannot be written.
        """
        self._path = path
        if self._file >= 0:
            self._write_anew()

    def descriptor(self) -> int:
        """The descriptor of the open file, which is made if absent: for a lock."""
        if self._file < 0:
            self._open()
        return self._file

    def close(self) -> None:
        """Force all lines to the disk and close the file.

        Raises:
            OSError: if the disk refuses some of them, or the folder was removed.
        """
        if self._file < 0:
            return
        try:
            self.sync()
            if where_is(self._folder, self._path.parent) is None:
                raise FileNotFoundError(errno.ENOENT, "its folder was removed, and its lines with it", str(self._path))
        finally:
            self._let_go()

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._file = open_regular_to_write(self._path, os.O_APPEND, folder=self._folder)
            if os.fstat(self._file).st_nlink > 1:  # appending would change what another name holds
                self._write_anew()
            size = os.fstat(self._file).st_size
            self._end = None
            self._is_torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        for descriptor in (self._folder, self._file):
            if descriptor >= 0:
                os.close(descriptor)
        self._folder = self._file = -1
        self._is_named = False

    def _ensure_in_place(self) -> None:
        if self._file < 0:
            self._open()
            return
        try:
            found = os.stat(self._path.name, dir_fd=self._folder, follow_symlinks=False)
        except OSError:
            if (folder := where_is(self._folder, self._path.parent)) is not None:
                self._path = folder / self._path.name
                self._write_anew()
                self.news.append(f"{self._path} was removed or renamed while it was written: it is back, with all rows")
            return
        if not os.path.samestat(found, os.fstat(self._file)):
            require_regular(self._path)
            self._let_go()
            self._open()
            self.news.append(f"{self._path} was replaced by another file while it was written: rows go on in that one")

    def _write_anew(self) -> None:
        """Put a copy of the open file into the place of its name, and go on in it."""
        write_whole(self._path, _content(self._file))
        self._let_go()
        self._open()

    def _take_back(self) -> None:
        """Remove the part of a line that was written."""
        assert self._end is not None
        os.ftruncate(self._file, self._end)
        self._end = None


def _content(file: int) -> Iterator[bytes]:
    position = 0
    while part := os.pread(file, _COPIED_BYTES, position):
        yield part
        position += len(part)
