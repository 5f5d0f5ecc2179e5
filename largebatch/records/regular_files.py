"""Files that another process, machine or person left: only regular ones are opened, and no more is read than is asked.

A name in a folder may be a pipe, whose opening waits for ever, a device without an end, or a link to what its owner
never meant to show.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Control characters, of which terminals make commands; those that turn the direction of writing; halves of pairs, as
# Python stands them in for bytes that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def open_regular(path: Path, *, inside: Path | None = None) -> BinaryIO:
    """Open a regular file to read its bytes; it never waits for a writer.

    Args:
        path: the file's; a link is followed.
        inside: a folder that no link may lead out of; None: links may lead anywhere.

    Raises:
        OSError: if it cannot be opened, FileNotFoundError if it is not there.
        ValueError: if it is no regular file, or a link that leads out.
    """
    if inside is not None and path.is_symlink():
        target, home = os.path.realpath(path), os.path.realpath(inside)
        if os.path.commonpath([target, home]) != home:
            raise ValueError(f"{path.name} is a link out of its folder, to {target}. Put a copy in its place.")
    _require_regular(path, os.stat(path))
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    try:
        _require_regular(path, os.fstat(file.fileno()))  # it may have been replaced in between
    except ValueError:
        file.close()
        raise
    return file


def read_regular(path: Path, *, most: int, inside: Path | None = None) -> bytes:
    """The bytes of a file of at most `most` bytes; further arguments and errors as of `open_regular`.

    Raises:
        ValueError: also if the file is larger.
    """
    with open_regular(path, inside=inside) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(f"{path.name} has more than {most:,} bytes. Such files are read up to that size.")
    return found


def printable(text: object, *, lines: bool = False) -> str:
    r"""A text that is safe on a terminal and in a page: unsafe characters are escaped; with `lines` line ends stay.

    >>> printable("a\x1b[31mb\n")
    'a\\x1b[31mb\\n'
    """
    if lines:
        return "\n".join(map(printable, str(text).split("\n")))
    return _UNPRINTABLE.sub(lambda found: _escape(found[0]), str(text))


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # the byte that it stands for
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def irregular_kind(found: os.stat_result) -> str | None:
    """The kind of a file that is not regular; None for a regular one."""
    return None if stat.S_ISREG(found.st_mode) else _KINDS.get(stat.S_IFMT(found.st_mode), "no file")


def _require_regular(path: Path, found: os.stat_result) -> None:
    if kind := irregular_kind(found):
        raise ValueError(f"{path.name} is {kind}, not a regular file. Remove it, or put the file in its place.")
