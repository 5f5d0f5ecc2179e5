"""Keeps secrets out of all output: `${oc.env:NAME}` stands for the value of a variable of the environment.

As in the logs of a build service, the value of a variable is replaced if a config reads it or its name marks a secret.
Messages of libraries and of the user's own code repeat the values that they were given.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from largebatch import conf_dir
from largebatch.records.credentials.recognition import is_secret, names_secret
from largebatch.records.credentials.vocabulary import NO_VALUES, PATTERNS

HIDDEN = "***"  # for a secret that is no variable's
_SHORTEST, _SHORTEST_SECRET, _SHORTEST_LINE = 6, 4, 16
_UNMISTAKABLE = 8  # characters: a shorter value counts as a whole word only
_NUMBER = re.compile(r"[-+]?[\d_]*\.?\d+(?:[eE][-+]?\d+)?|(?i:nan|inf|true|false|null|none|yes|no|on|off)")
_PIN = re.compile(r"\d{6,}(?<!000)")
_read: set[str] = set()  # variables that a config of this process reads


def hide_variables(names: Iterable[str]) -> None:
    """From now on `redacted` puts these variables of the environment in place of their values.

    A value that is a number, or a path that exists, stays visible.
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
    for value, pattern, shown in _hidden(frozenset(os.environb.items()), frozenset(_read)):
        if value in text:
            text = pattern.sub(lambda _, shown=shown: shown, text)  # type: ignore[misc]
    for one in PATTERNS:
        text = one.sub(HIDDEN, text)
    return text


class RedactedScreen:
    """A screen that hides secrets; all else is delegated to the screen behind it."""

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


@functools.lru_cache(1)  # a line on a screen need not wait for it, until the environment changes
def _hidden(environ: frozenset[tuple[bytes, bytes]], read: frozenset[str]) -> list[tuple[str, re.Pattern[str], str]]:
    """(value, pattern, replacement) of every secret, the longest first: one may be part of another."""
    spellings = {spelling: name for name, value in _secret_variables(read) for spelling in _spellings(value)}
    longest_first = sorted(spellings.items(), key=lambda pair: len(pair[0]), reverse=True)
    return [(one, re.compile(_anywhere(one)), f"${{oc.env:{name}}}") for one, name in longest_first]


def _anywhere(value: str) -> str:
    found = re.escape(value)
    return found if len(value) >= _UNMISTAKABLE else rf"(?<!\w){found}(?!\w)"


def _secret_variables(read: frozenset[str]) -> Iterator[tuple[str, str]]:
    for name, value in os.environ.items():
        is_number = _NUMBER.fullmatch(value) is not None
        if names_secret(name):
            hides = len(value) >= _SHORTEST_SECRET and (not is_number or _PIN.fullmatch(value) is not None)
        else:
            hides = name in read and len(value) >= _SHORTEST and not is_number
            hides = hides or (names_secret(name) is None and is_secret(name, value))
        if hides and not _exists(value) and not _is_ordinary(value):
            yield name, value


def _is_ordinary(value: str) -> bool:
    """Whether our own output holds the value anyway: a replacement there would reveal that it is the secret."""
    if value.casefold() in NO_VALUES or value in Path.home().parts:
        return True
    return re.fullmatch("[A-Za-z]+", value) is not None and value in _own_words()


@functools.cache
def _own_words() -> frozenset[str]:
    """The words in names and comments of conf/, which has metrics, choices and columns, too."""
    texts = (path.read_text(encoding="utf-8") for path in Path(conf_dir()).rglob("*.yaml"))
    return frozenset(word for text in texts for word in re.findall("[A-Za-z]+", text))


def _spellings(value: str) -> set[str]:
    """A text as it is, in JSON, in an address, and line by line."""
    lines = {line for line in value.splitlines() if len(line) >= _SHORTEST_LINE}
    return {value, json.dumps(value)[1:-1], repr(value)[1:-1], quote(value, safe="")} | lines


def _exists(value: str) -> bool:
    return "/" in value and os.path.isabs(value) and os.path.exists(value)
