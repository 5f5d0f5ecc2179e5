"""How files are written: a new file beside the old one, forced to the disk, and renamed into its place.

Whatever call fails, and whenever the process dies, the name holds the old version or the new one, whole. A draft has
a random name, so that ranks and hosts never meet in one, and is locked for as long as its writer lives: whoever writes
the same name next removes the drafts that nobody holds. Links and special files in the place of a file are refused;
another name of the same file (a hard link) keeps what it has. Modes are those of the umask.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from largebatch.records.regular_files import irregular_kind

_DRAFT = re.compile(r"\.(.+)\.tmp-[0-9a-f]{16}", re.DOTALL)
_MOST_SHOWN = 50  # characters of the name that a draft repeats: a name has 255 bytes at most
_NO_FOLDERS_FORCED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)  # by some file systems, over networks


class NotWrittenError(OSError):
    """The new content is not on the disk; the old content is intact."""


def write_whole(path: str | Path, content: bytes | str | Iterable[bytes], *, mode: int = 0o666) -> Path:
    """Replace a file as a whole, or leave the old one; its folder is made if absent. Returns the path.

    Args:
        path: of the file.
        content: all of it. A text is written as UTF-8; of many parts one is in memory at a time.
        mode: its permissions before the umask.

    Raises:
        OSError: if the system refuses, or something else than a regular file is in its place.
    """
    path = Path(path)
    parts = [content.encode()] if isinstance(content, str) else [content] if isinstance(content, bytes) else content
    with _draft_of(path, mode) as (_, file):
        for part in parts:
            write_all(file, part)
        os.fsync(file)
    return path


def write_record(path: str | Path, values: Any, *, allow_nan: bool = True) -> Path:
    """Write plain values as JSON, as `write_whole` does; `allow_nan` as in `json.dumps`."""
    return write_whole(path, json.dumps(values, indent=1, allow_nan=allow_nan) + "\n")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """For libraries that write by name: yields a draft of `path`, which takes its place if the block does not raise.

    Raises:
        OSError: as `write_whole`.
    """
    with _draft_of(Path(path), 0o666) as (draft, file):
        yield draft
        os.chmod(draft, stat.S_IMODE(os.fstat(file).st_mode))  # it may be another file by now, with a mode of its own
        sync(draft)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, in a folder that nobody else knows of; it is on the disk afterwards."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        write_all(file, content)
        os.fsync(file)
    finally:
        os.close(file)


def write_all(file: int, data: bytes) -> None:
    """Write all of it. A disk that fills up takes a part, and refuses the rest with the reason."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def sync(path: Path) -> None:
    """Force a file to the disk."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_names(folder: Path | int) -> None:
    """Force the names in a folder, given by path or descriptor, to the disk, where its file system knows how."""
    try:
        if isinstance(folder, int):
            os.fsync(folder)
        else:
            sync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDERS_FORCED:
            raise


@contextlib.contextmanager
def as_not_written(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, which writes `path`, into a NotWrittenError with path and reason."""
    try:
        yield
    except NotWrittenError:
        raise
    except OSError as error:
        named = NotWrittenError(f"{path} cannot be written: {error.strerror or error}")
        named.errno = error.errno
        raise named from error


def require_regular(path: Path) -> None:
    """Raise OSError where something else than a regular file is in the place of one."""
    with contextlib.suppress(FileNotFoundError):
        if kind := irregular_kind(os.lstat(path)):
            raise OSError(
                f"{path} is {kind}, and only regular files are written, never through a link: remove it, or choose "
                "another place"
            )


def open_regular_to_write(path: Path, flags: int = 0, *, folder: int | None = None) -> int:
    """A descriptor of a file to read and write, made if absent; nothing but a regular file is opened.

    Args:
        path: of the file.
        flags: more of them, such as O_APPEND.
        folder: descriptor of its folder, where that may have been renamed.

    Raises:
        OSError: if it cannot be opened, or is something else.
    """
    require_regular(path)
    more = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(path if folder is None else path.name, flags | more, 0o666, dir_fd=folder)
    if kind := irregular_kind(os.fstat(file)):
        os.close(file)
        raise OSError(f"{path} is {kind}, and only regular files are written: remove it, or choose another place")
    return file


def remove_abandoned_drafts(folder: Path, of: str = "") -> None:
    """Remove the drafts in a folder whose writers are gone: of all files, or of the one named `of`."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = _DRAFT.fullmatch(entry.name)
            if match and match[1] == (of[:_MOST_SHOWN] or match[1]):
                _remove_if_abandoned(entry.path)


def where_is(folder: int, was: Path) -> Path | None:
    """The path of an open folder that was at `was`, whoever renamed it since; None if it was removed.

    Where it is now, only Linux tells: elsewhere a renamed folder counts as removed.
    """
    for place in (lambda: str(was), lambda: os.readlink(f"/proc/self/fd/{folder}")):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path := place()), os.fstat(folder)):
                return Path(path)
    return None


@contextlib.contextmanager
def _draft_of(path: Path, mode: int) -> Iterator[tuple[Path, int]]:
    with as_not_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        require_regular(path)
        remove_abandoned_drafts(path.parent, path.name)
        draft, file = _new_draft(path, mode)
        with _in_place_at_the_end(draft, file, path):
            yield draft, file


@contextlib.contextmanager
def _in_place_at_the_end(draft: Path, file: int, path: Path) -> Iterator[None]:
    try:
        yield
        os.replace(draft, path)
        sync_names(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    finally:
        os.close(file)


def _new_draft(path: Path, mode: int) -> tuple[Path, int]:
    while True:
        draft = path.with_name(f".{path.name[:_MOST_SHOWN]}.tmp-{secrets.token_hex(8)}")
        file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # whoever cleans up came between the two calls, and removes it
            os.close(file)
            continue
        except OSError:  # a file system without locks, on which nobody cleans up
            return draft, file
        if draft.exists():
            return draft, file
        os.close(file)


def _remove_if_abandoned(draft: str) -> None:
    with contextlib.suppress(OSError):  # another process may have done it
        file = os.open(draft, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(draft)
        finally:
            os.close(file)
