"""`largebatch help WORD`: a key, a group, one choice of a group, or whatever names or comments hold the word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from largebatch.cli.catalogue.composed import Catalogue
from largebatch.cli.catalogue.files import Setting, comment_lines
from largebatch.cli.pages.layout import setting_row, two_columns, wrapped
from largebatch.run.config.did_you_mean import did_you_mean, meant_by_key
from largebatch.run.config.other_tools import sentence_for_key

_MOST_FOUND = 40
_WHOLE_RUNS = ("experiment=", "debug=")
PRIMARY = "train"


class NoChoiceError(ValueError):
    """GROUP=CHOICE without such a choice: says which there are."""


class Topics:
    """Everything that conf/ can tell about.

    Args:
        catalogue: of conf/.
        primaries: names of the primary configs; train comes first.
        width: of a line.
    """

    def __init__(self, catalogue: Catalogue, primaries: Sequence[str], width: int) -> None:
        self._catalogue = catalogue
        self._width = width
        self._settings: dict[str, Setting] = {}
        for name in (PRIMARY, *primaries):
            self._settings = {**catalogue.settings(name, {}), **self._settings}

    def page(self, word: str) -> str:
        """The page of a key, a group, or GROUP=CHOICE; else of all that holds the word; empty if nothing does.

        Raises:
            NoChoiceError: for GROUP=CHOICE whose group has no such choice.
        """
        name, equals, choice = word.partition("=")
        if name in self._catalogue.groups():
            is_choice = equals and choice in self._catalogue.choices(name)
            if equals and not is_choice:
                raise NoChoiceError(self._no_choice(name, choice))
            return "\n".join(self._choice(name, choice) if is_choice else self._group(name))
        key = self._key(name)
        return "\n".join(self._of_key(key) if key else self._found(name))

    def _no_choice(self, group: str, choice: str) -> str:
        names = sorted(self._catalogue.choices(group))
        return f"{group}={choice}: there is no such choice.{did_you_mean(choice, names)} There are: {', '.join(names)}."

    def _key(self, word: str) -> str:
        """The key that a word names, whole or by its end; empty if there is none, or several."""
        if word in self._settings or self._catalogue.bringers(word):
            return word
        ends = [key for key in self._settings if key.endswith(f".{word}")]
        return ends[0] if len(ends) == 1 else ""

    def _of_key(self, key: str) -> Iterator[str]:
        bringers = self._catalogue.bringers(key)
        setting = self._settings.get(key) or next(iter(bringers.values()))
        yield f"{key}={setting.value}" if not setting.is_section else f"{key}, a group of keys"
        yield from wrapped(setting.comment, self._width, 2)
        if not setting.is_section:
            yield ""
            yield from two_columns(self._facts(key, setting, bringers), self._width)
        inside = [one for name, one in self._settings.items() if name.startswith(f"{key}.")]
        section = key.rpartition(".")[0]
        near = inside or [
            one for name, one in self._settings.items() if name != key and name.rpartition(".")[0] == section
        ]
        if near and (inside or section):
            yield from ("", "inside:" if inside else "beside it:")
            yield from two_columns(map(setting_row, near), self._width)

    def _facts(self, key: str, setting: Setting, bringers: Mapping[str, Setting]) -> Iterator[tuple[str, str]]:
        is_used = key in self._settings
        yield ("from" if is_used else "only in", self._place(setting.file))
        if kind := _type(key):
            yield ("type", kind)
        for choice, other in bringers.items():
            if not choice.startswith(_WHOLE_RUNS) and (other.value != setting.value or not is_used):
                yield (choice, f"sets it to {other.value}")

    def _group(self, group: str) -> Iterator[str]:
        choices = self._catalogue.choices(group)
        yield f"{group}=NAME: a group, chosen by name"
        yield ""
        yield from two_columns(((f"{group}={name}", text) for name, text in choices.items()), self._width)
        in_use = self._catalogue.in_use(PRIMARY, {}).get(group)
        inside = [one for name, one in self._settings.items() if name.startswith(f"{group}.")]
        if in_use is not None:
            yield ""
            yield f"Without it: {group}={','.join(in_use)}" if in_use else "Without it there is none."
        if inside:
            yield from two_columns(map(setting_row, inside), self._width)
        yield from ("", *wrapped(f"`largebatch help {group}={next(iter(choices))}` shows a choice.", self._width))

    def _choice(self, group: str, choice: str) -> Iterator[str]:
        file = self._catalogue.read(group, choice)
        yield f"{group}={choice}, of {self._place(file.path)}"
        yield from wrapped(" ".join(comment_lines(file.path.read_text(encoding="utf-8"))), self._width, 2)
        yield ""
        for entry in file.defaults:
            if isinstance(entry, Mapping):
                ((name, value),) = entry.items()
                yield f"  chooses {str(name).split()[-1].lstrip('/')}={value}"
        shown = [one for one in file.settings if one.comment or not one.is_section]
        yield from two_columns(map(setting_row, shown), self._width)

    def _found(self, word: str) -> Iterator[str]:
        meant = sentence_for_key(word) or meant_by_key(word, list(self._settings))
        if meant:
            yield from wrapped(f"{word}: there is no such key. {meant}", self._width)
        sought = re.compile(rf"(?<![^\W_]){re.escape(word)}" if len(word) < 4 else re.escape(word), re.IGNORECASE)
        choices = [
            (f"{group}={name}", text)
            for group in self._catalogue.groups()
            for name, text in self._catalogue.choices(group).items()
            if sought.search(f"{name} {text}")
        ]
        keys = [one for one in self._settings.values() if sought.search(f"{one.key} {one.comment}")]
        rows = [*map(setting_row, keys), *choices]
        if rows:
            yield from ([""] if meant else [])
            yield f"{word!r} is in:"
            yield from two_columns(rows[:_MOST_FOUND], self._width)
        if rows[_MOST_FOUND:]:
            yield f"  and {len(rows) - _MOST_FOUND} more"

    def _place(self, file: Path) -> str:
        folder = next(folder for folder in self._catalogue.folders if file.is_relative_to(folder))
        return f"conf/{file.relative_to(folder).as_posix()}"


def _type(key: str) -> str:
    from largebatch.run.config.described import type_of  # pydantic takes as long as the rest of the page
    from largebatch.run.config.schema import TrainConfig

    return type_of(key, TrainConfig)
