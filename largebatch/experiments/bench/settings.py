"""Settings of a bench without a config: `KEY=VALUE` arguments, one place for name, default, check and help of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, TypeVar

Read = Callable[[str, str], Any]
Settings = TypeVar("Settings")


def setting(default: Any, read: Read, form: str, meaning: str) -> Any:
    """A field of a dataclass of settings.

    Args:
        default: its value where it is not given.
        read: converts (key, text) to the value; raises ValueError for a wrong text.
        form: placeholder of the value in the usage: N, NAME,...
        meaning: the explanation in the usage.
    """
    return field(default=default, metadata={"read": read, "form": form, "meaning": meaning})


def read_settings(kind: type[Settings], arguments: Sequence[str]) -> Settings:
    """Settings of `KEY=VALUE` arguments.

    Raises ValueError for the first one that is wrong.
    """
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value or key not in known:
            raise ValueError(f"{argument!r}: an argument is KEY=VALUE with KEY one of {', '.join(known)}.")
        if key in given:
            raise ValueError(f"{key} is given twice. Give it once.")
        given[key] = known[key].metadata["read"](key, value)
    return kind(**given)


def usage(name: str, kind: type[Any]) -> str:
    """The text of `largebatch bench NAME --help`."""
    rows = [(f"{one.name}={one.metadata['form']}", one.metadata["meaning"]) for one in fields(kind)]
    width = max(len(form) for form, _ in rows)
    lines = [f"  {form:{width}}  {meaning}" for form, meaning in rows]
    return "\n".join([f"usage: largebatch bench {name} [KEY=VALUE ...]\n", *lines])


def some_of(known: Sequence[str]) -> Read:
    """Reads names with commas between them."""

    def names(key: str, text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if wrong := [name for name in found if name not in known]:
            raise ValueError(f"{key}={text}: {wrong[0]!r} is not known. Name one or more of {', '.join(known)}.")
        return found

    return names


def one_of(*known: str) -> Read:
    """Reads one name."""

    def name(key: str, text: str) -> str:
        if text not in known:
            raise ValueError(f"{key}={text}: must be {' or '.join(known)}.")
        return text

    return name


def at_least(least: int) -> Read:
    """Reads a whole number."""

    def number(key: str, text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ValueError(f"{key}={text}: must be a whole number, {least} or more.")
        return int(text)

    return number


def new_file(key: str, text: str) -> str:
    """Reads the path of a file to write."""
    folder = Path(text).resolve().parent
    if not folder.is_dir():
        raise ValueError(f"{key}={text}: there is no folder {folder}. Make it first.")
    return text
