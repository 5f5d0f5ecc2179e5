"""A disk that fails at one of the calls that change it, whichever is asked for."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

CHANGES = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "ftruncate", "chmod")


class Death(BaseException):
    """The process is gone: nothing that it would still do happens."""


class FailingDisk:
    """Counts the calls of `os` that change the disk; the `at`-th fails, and with `lasting` all later ones do.

    Args:
        patch: undoes it.
        at: from 0; a number too large lets everything pass.
        error: number of the error, such as ENOSPC; None: the process dies.
        lasting: whether it goes on; a death does.
        after: bytes that a failing `write` has written before: a disk that fills up takes a part of them.
    """

    def __init__(
        self, patch: pytest.MonkeyPatch, at: int, error: int | None, *, lasting: bool = False, after: int = 0
    ) -> None:
        self.calls: list[str] = []
        self._at, self._error, self._after = at, error, after
        self._lasts = lasting or error is None
        for name in CHANGES:
            # Forcing a thousand files to a real disk would take minutes.
            function = (lambda file: None) if name == "fsync" else getattr(os, name)
            patch.setattr(os, name, self._watched(name, function))

    @property
    def failed(self) -> str | None:
        """The call that failed first."""
        return self.calls[self._at] if len(self.calls) > self._at else None

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return function(*args, **kwargs)
            number = len(self.calls)
            self.calls.append(name)
            if number < self._at or (number > self._at and not self._lasts):
                return function(*args, **kwargs)
            if name == "write" and number == self._at and self._after:
                return function(args[0], bytes(args[1])[: self._after])  # the next call says why it was not more
            if self._error is None:
                raise Death
            raise OSError(self._error, os.strerror(self._error))

        return call


FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, None)
