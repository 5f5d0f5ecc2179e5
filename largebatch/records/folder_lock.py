"""One writer per folder: two runs in one would overwrite each other's checkpoints and mix their rows."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from largebatch.records.durable_files import open_regular_to_write

LOCK = ".lock"
# A Lustre without `-o flock`, an NFS without its lock daemon.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_BETWEEN_TRIES_S = 0.1
_HELD: set[int] = set()


def _let_go_after_fork() -> None:
    """A fork, such as a loading process, shares the lock, and outlives a run that is killed by seconds."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_let_go_after_fork)


class FolderInUseError(Exception):
    """Another process writes to the folder. The message names it and the remedy."""


class FolderLock:
    """Holds a folder for this process, as a context manager; the folder is made if absent.

    The kernel releases it when the process ends, however it ends: nothing is left to clean up after a kill, and what
    was forked from it does not hold it. Over NFS it needs a server with locks, as every one since version 4 has.

    Args:
        folder: a run's.
        wait_s: seconds to wait for another process to release it, such as one that is ending.

    Attributes:
        problem: why the folder is not held although the block was entered: its file system has no locks.

    Raises:
        FolderInUseError: on entry, if another process holds it.
    """

    def __init__(self, folder: Path, *, wait_s: float = 0) -> None:
        self._path = folder / LOCK
        self._give_up_at = time.monotonic() + wait_s
        self._file: int | None = None
        self.problem: str | None = None

    def __enter__(self) -> FolderLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = open_regular_to_write(self._path)
        try:
            self._take(file)
            values = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(values).encode(), 0)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        _HELD.add(file)
        return self

    def take_again(self, folder: Path) -> None:
        """Hold `folder` instead: one that was removed, with the lock in it, and made anew.

        Raises:
            FolderInUseError: if another process holds it.
        """
        self.__exit__(None, None, None)
        self._path = folder / LOCK
        self.__enter__()

    def _take(self, file: int) -> None:
        while not self._is_taken(file):
            if time.monotonic() >= self._give_up_at:
                raise FolderInUseError(
                    f"{self._path.parent} is in use by {_owner(os.pread(file, 1000, 0))}: two runs in one folder would "
                    "overwrite each other's checkpoints and mix their rows. Wait for it, stop it, or choose another "
                    "run.dir."
                )
            time.sleep(_BETWEEN_TRIES_S)

    def _is_taken(self, file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self.problem = (
                f"the file system of {self._path.parent} has no locks ({error.strerror}): a second run in this folder "
                "would not be refused"
            )
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file in _HELD:  # not in a fork, where the number may be another file's by now
            _HELD.discard(self._file)
            os.close(self._file)  # and with it the lock; the file stays: removing it would race with the next owner
        self._file = None


def _owner(content: bytes) -> str:
    try:
        values = json.loads(content)
        host = f" on {values['host']}" if "host" in values else ""
        return f"process {values['pid']}{host} since {values['since']}"
    except (ValueError, KeyError, TypeError):  # between taking the lock and writing who has it
        return "another process"
