"""Keeps secrets out of what is told: `${oc.env:NAME}` stands for what a variable of the environment holds.

As the logs of a build service do: whatever holds the value of a variable that was read, or whose name says that it is
a secret, is told without it. Messages of libraries and of the user's own code repeat what they were given.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from largebatch.credentials.recognition import is_secret, names_secret
from largebatch.credentials.vocabulary import PATTERNS

HIDDEN = "***"  # a secret that came from nowhere
_SHORTEST, _SHORTEST_SECRET, _SHORTEST_LINE = 6, 4, 16
_UNMISTAKABLE = 8  # characters: where less are found inside a word, they are others
_NUMBER = re.compile(r"[-+]?[\d_]*\.?\d+(?:[eE][-+]?\d+)?|(?i:nan|inf|true|false|null|none|yes|no|on|off)")
_read: set[str] = set()  # variables that a config of this process reads


def hide_variables(names: Iterable[str]) -> None:
    """From now on `redacted` puts these variables of the environment in place of their values.

    Not where a value is a number, or a path that exists: both are told.
    """
    _read.update(names)


def is_secret_variable(name: str) -> bool:
    """Whether a variable of the environment holds a secret, by its name or by its value."""
    value = os.environ.get(name, "")
    return not _exists(value) and (bool(names_secret(name)) or is_secret(name, value))


def redacted(text: str) -> str:
    """A text without secrets: those of variables by the name of the variable, others as `***`.

    >>> redacted("cloning https://me:word7@host/x")
    'cloning https://***@host/x'
    """
    for pattern, shown in _hidden():
        text = pattern.sub(lambda _, shown=shown: shown, text)  # type: ignore[misc]
    for one in PATTERNS:
        text = one.sub(HIDDEN, text)
    return text


class RedactedScreen:
    """A screen on which no secret is shown; all else is that of the screen behind it."""

    def __init__(self, screen: Any) -> None:
        self._screen = screen

    def write(self, text: str) -> int:
        """Print the text without secrets."""
        self._screen.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Print the lines without secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._screen, name)


def redact_screens() -> None:
    """Show no secret from now on, in a process of our own that begins; a fork has the screens of its parent."""
    for name in ("stdout", "stderr"):
        screen = getattr(sys, name)
        if screen is not None and not isinstance(screen, RedactedScreen):
            setattr(sys, name, RedactedScreen(screen))


def _hidden() -> list[tuple[re.Pattern[str], str]]:
    """What stands for a secret, the longest first: one may be part of another."""
    spellings = {spelling: name for name, value in _secret_variables() for spelling in _spellings(value)}
    longest_first = sorted(spellings.items(), key=lambda pair: len(pair[0]), reverse=True)
    return [(re.compile(_anywhere(one)), f"${{oc.env:{name}}}") for one, name in longest_first]


def _anywhere(value: str) -> str:
    found = re.escape(value)
    return found if len(value) >= _UNMISTAKABLE else rf"(?<!\w){found}(?!\w)"


def _secret_variables() -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        is_number = _NUMBER.fullmatch(value) is not None
        if names_secret(name):
            hides = len(value) >= (_SHORTEST if is_number else _SHORTEST_SECRET)
        else:
            hides = name in _read and len(value) >= _SHORTEST and not is_number
            hides = hides or (names_secret(name) is None and is_secret(name, value))
        if hides and not _exists(value):
            yield name, value


def _spellings(value: str) -> set[str]:
    """A text as it is, in JSON, in an address, and line by line."""
    lines = {line for line in value.splitlines() if len(line) >= _SHORTEST_LINE}
    return {value, json.dumps(value)[1:-1], repr(value)[1:-1], quote(value, safe="")} | lines


def _exists(value: str) -> bool:
    return "/" in value and os.path.isabs(value) and os.path.exists(value)
