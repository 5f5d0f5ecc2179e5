"""Restores the process surroundings of a verb: arguments, environment, folder, streams, random generators."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED, EXIT_UNREAD
from largebatch.records.credentials import RedactedScreen

_PLAIN = "largebatch-plain"  # error handler: ASCII in place of signs that a stream cannot encode
_SIGNS = {
    ord(sign): plain
    for plain, signs in {
        "+-": "±", "x": "\u00d7", "-": "\u2212\u2013\u2014─━", "*": "·", "->": "→", "...": "…", "<=": "≤", ">=": "≥",
        "~": "≈", "^2": "²", "sigma": "\u03c3", "u": "\u00b5\u03bc", "ok": "✓", "|": "│", "#": "█",
    }.items()
    for sign in signs
}  # fmt: skip
_RUNNING = threading.RLock()
# A pipe whose reader has ended, a closed terminal, a log file on a full disk.
_GONE = (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT)


class _Screen:
    """A stream that swallows output once it cannot be written: a run of hours must not depend on its reader."""

    def __init__(self, screen: Any) -> None:
        self._screen = screen
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._unless_gone(self._screen.write, text)
        return len(text)

    def flush(self) -> None:
        self._unless_gone(self._screen.flush)

    def _unless_gone(self, do: Callable[..., Any], *arguments: Any) -> None:
        if self.error is None:
            try:
                do(*arguments)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._screen, name)


@dataclass(frozen=True)
class Screens:
    """The output streams of a verb."""

    stdout: _Screen

    def exit_code(self, code: int) -> int:
        """The exit code of a verb whose answer is its output: `code`, unless a success could not be printed."""
        self.stdout.flush()
        if code != EXIT_DONE or self.stdout.error is None:
            return code
        if self.stdout.error.errno == errno.EPIPE:  # e.g. `| head`
            return EXIT_UNREAD
        print(f"largebatch: cannot write the output: {self.stdout.error}", file=sys.stderr)
        return EXIT_FAILED


class AnotherRunError(Exception):
    """Another thread of this process is running a verb."""


@contextlib.contextmanager
def restored_surroundings() -> Iterator[Screens]:
    """On exit restore arguments, search path, environment, working folder, streams and torch's random generators.

    The body keeps running when its output can no longer be written.

    Raises:
        AnotherRunError: if another thread is inside: arguments, generators and process group belong to the process.
    """
    if not _RUNNING.acquire(blocking=False):
        raise AnotherRunError
    try:
        argv, path, environ, folder = sys.argv, list(sys.path), dict(os.environ), os.getcwd()
        generators = _generators()
        try:
            with _writable_screens() as screens:
                yield screens
        finally:
            sys.argv, sys.path[:] = argv, path
            _restore_environment(environ)
            with contextlib.suppress(OSError):  # the folder may have been removed
                os.chdir(folder)
            for restore, state in generators:
                restore(state)
    finally:
        _RUNNING.release()


def enter_utf8_mode() -> None:
    """Restart this process in Python's UTF-8 mode if file names and texts would be ASCII.

    In the POSIX locale without that mode, a name with an umlaut is neither an argument nor a path. Other encodings
    stay, because the user's own texts may be written in them.
    """
    if sys.executable and sys.getfilesystemencoding() == "ascii" and not sys.flags.utf8_mode:
        environ = os.environ | {"PYTHONUTF8": "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def _restore_environment(environ: dict[str, str]) -> None:
    for name in os.environ.keys() - environ.keys():
        del os.environ[name]
    os.environ.update(environ)


@contextlib.contextmanager
def _writable_screens() -> Iterator[Screens]:
    """Streams that never fail a run: not when closed, without Unicode, or without a reader."""
    with contextlib.ExitStack() as stack:
        screens = []
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            screen: Any = getattr(sys, name)
            if screen is None:  # closed by the parent process
                screen = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            elif hasattr(screen, "reconfigure") and not str(screen.encoding).lower().startswith("utf"):
                stack.callback(screen.reconfigure, errors=screen.errors)
                screen.reconfigure(errors=_PLAIN)
            screens.append(_Screen(screen))
            stack.enter_context(redirect(RedactedScreen(screens[-1])))
        yield Screens(screens[0])


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_SIGNS)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def _generators() -> list[tuple[Any, Any]]:
    """(setter, state) of torch's random generators; empty if torch is not imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    states: list[tuple[Any, Any]] = [(torch.random.set_rng_state, torch.random.get_rng_state())]
    if torch.cuda.is_initialized():
        states.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return states


codecs.register_error(_PLAIN, _plain)
