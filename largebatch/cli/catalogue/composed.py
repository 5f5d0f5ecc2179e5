"""The settings of a verb for given choices: Hydra's list of defaults, followed without Hydra."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from largebatch.cli.catalogue.files import ConfFile, Setting, description, read_file


@dataclass(frozen=True)
class Catalogue:
    """Config folders: conf/, and those of --config-dir before it.

    >>> from largebatch import conf_dir
    >>> catalogue = Catalogue((Path(conf_dir()),))
    >>> catalogue.choices("optimizer")["lars"]
    'LARS (You et al. 2017)'
    >>> catalogue.settings("train", {"optimizer": ("lars",)})["scaling.base_lr"].value
    '10.0'
    """

    folders: tuple[Path, ...]

    def groups(self) -> list[str]:
        """Groups whose choice has a file, nested ones, such as experiment/study, left out."""
        return sorted(
            {one.name for folder in self.folders for one in folder.glob("[!_.]*/") if any(one.rglob("*.yaml"))}
        )

    def choices(self, group: str) -> dict[str, str]:
        """Choice -> its description."""
        found: dict[str, str] = {}
        for folder in self.folders:
            for path in sorted((folder / group).rglob("*.yaml")):
                found.setdefault(path.relative_to(folder / group).with_suffix("").as_posix(), description(path))
        return dict(sorted(found.items()))

    def settings(self, config_name: str, chosen: Mapping[str, Sequence[str]]) -> dict[str, Setting]:
        """Every key that a verb has with the chosen groups, by name; the last file to set it gives its value."""
        found: dict[str, Setting] = {}
        for part in self.files(config_name, chosen):
            for one in part.settings:
                for key in found.keys() & set(accumulate(one.key.split("."), "{}.{}".format)):
                    if found[key].value == "{}" and key != one.key:  # no longer empty
                        found[key] = replace(found[key], value="")
                before = found.get(one.key)
                found[one.key] = replace(one, comment=before.comment) if before and not one.comment else one
        return found

    def files(self, config_name: str, chosen: Mapping[str, Sequence[str]]) -> list[ConfFile]:
        """The files that Hydra merges, in its order.

        Args:
            config_name: of the primary config.
            chosen: group -> choices, as typed; they win over those of files.
        """
        return list(_Composition(self, dict(chosen)).expand("", config_name))

    def in_use(self, config_name: str, chosen: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
        """Group -> its choices, none included, for every group of the lists of defaults."""
        files = self.files(config_name, chosen)
        named = [one.group for file in files for one in map(_entry, file.defaults) if one.is_choice and one.group]
        found: dict[str, tuple[str, ...]] = {group: () for group in named if self.choices(group)}
        for file in files:
            for folder in self.folders:
                if file.path.is_relative_to(folder):
                    group, name = file.path.parent.relative_to(folder).as_posix(), file.path.stem
                    found |= {group: (name,)} if group in found else {}
        return found | {group: tuple(names) for group, names in chosen.items() if group in found}

    def bringers(self, key: str) -> dict[str, Setting]:
        """GROUP=CHOICE -> setting, for the choices whose files set a key themselves."""
        found = {}
        for group in self.groups():
            for choice in self.choices(group):
                for one in self.read(group, choice).settings:
                    if one.key == key:
                        found[f"{group}={choice}"] = one
        return found

    @functools.cache  # noqa: B019 - a process has one or two
    def read(self, group: str, name: str) -> ConfFile:
        """The file of a choice, or the primary config `name` for an empty group; without content if there is none."""
        paths = (folder / group / f"{name}.yaml" for folder in self.folders)
        path = next((path for path in paths if path.is_file()), None)
        return ConfFile(Path(), (), ()) if path is None else read_file(path, group)


class _Composition:
    """Follows a list of defaults from its end to its start, as Hydra does: so later `override` entries win."""

    def __init__(self, catalogue: Catalogue, chosen: dict[str, Sequence[str]]) -> None:
        self._catalogue = catalogue
        self._chosen = chosen

    def expand(self, group: str, name: str) -> list[ConfFile]:
        file = self._catalogue.read(group, name)
        entries = [*map(_entry, file.defaults)]
        for one in reversed(entries):
            if one.overrides:
                self._chosen.setdefault(str(one.group), one.names)
        if not any(one.is_self for one in entries):
            entries.append(_Entry(is_self=True))
        parts: list[list[ConfFile]] = []
        for one in reversed(entries):
            if one.is_self:
                parts.append([file])
            elif not one.overrides:
                inside = group if one.group is None else one.group
                names = self._chosen.get(inside, one.names) if one.is_choice else one.names
                parts += [self.expand(inside, each) for each in reversed(names)]
        return [part for found in reversed(parts) for part in found]


@dataclass(frozen=True)
class _Entry:
    """An entry of a list of defaults; `group` is None for a file of the same folder."""

    group: str | None = None
    names: tuple[str, ...] = ()
    is_choice: bool = False
    overrides: bool = False
    is_self: bool = False


def _entry(given: Any) -> _Entry:
    if not isinstance(given, Mapping):
        if not str(given).startswith("/"):
            return _Entry(names=(str(given),), is_self=given == "_self_")
        folder, _, name = str(given)[1:].rpartition("/")
        return _Entry(folder, (name,))
    ((words, value),) = given.items()
    *kinds, group = str(words).split()
    names = [] if value is None else value if isinstance(value, list) else [value]
    place = group.lstrip("/").partition("@")[0]
    return _Entry(place, tuple(map(str, names)), is_choice=True, overrides="override" in kinds)


def typed_choices(overrides: Sequence[str], catalogue: Catalogue) -> dict[str, Sequence[str]]:
    """Group -> the choices that a command line names, without those that do not exist.

    >>> from largebatch import conf_dir
    >>> typed_choices(["optimizer=lars", "experiment=[quickstart]", "seed=1"], Catalogue((Path(conf_dir()),)))
    {'optimizer': ('lars',), 'experiment': ('quickstart',)}
    """
    groups = set(catalogue.groups())
    typed = {
        group: tuple(_names(value))
        for one in overrides
        for group, equals, value in [one.lstrip("+").partition("=")]
        if equals and group in groups
    }
    return {group: names for group, names in typed.items() if set(names) <= catalogue.choices(group).keys()}


def _names(value: str) -> Iterator[str]:
    for name in value.strip("[]").split(","):
        if name.strip() not in ("", "null"):
            yield name.strip().strip("'\"")
