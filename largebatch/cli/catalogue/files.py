"""One file of conf/: its description, and the values and comments of its keys."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# libyaml where it is installed: a tenth of the time.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PACKAGE = re.compile(r"^# @package (\S+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Setting:
    """A key as a file has it.

    Attributes:
        key: dotted, from the root of the config.
        value: as it is written; empty for a section.
        comment: beside the key, with its lines joined; empty if there is none.
        file: that sets it.
    """

    key: str
    value: str
    comment: str
    file: Path

    @property
    def is_section(self) -> bool:
        """Whether it holds keys in place of a value."""
        return not self.value


@dataclass(frozen=True)
class ConfFile:
    """A file of a config folder, as Hydra places its keys.

    Attributes:
        defaults: its list of defaults, as YAML reads it.
        settings: its keys in their order.
    """

    path: Path
    defaults: tuple[Any, ...]
    settings: tuple[Setting, ...]


@functools.cache
def read_file(path: Path, group: str) -> ConfFile:
    """Read one file; `group` is its folder relative to the config folder, empty at the top.

    Raises:
        OSError: if it cannot be read.
        yaml.YAMLError: if it is not valid YAML.
    """
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=_Loader)
    if not isinstance(root, yaml.MappingNode):
        return ConfFile(path, (), ())
    found = _PACKAGE.search(text)
    package = {None: group.replace("/", "."), "_global_": ""}.get(found and found[1], found[1] if found else "")
    pairs = [pair for pair in root.value if pair[0].value not in ("defaults", "hydra")]
    defaults = (yaml.load(text, Loader=_Loader) or {}).get("defaults") or () if "defaults:" in text else ()
    settings = _settings(pairs, f"{package}." if package else "", text.splitlines(), path)
    return ConfFile(path, tuple(defaults), tuple(settings))


def description(path: Path) -> str:
    """The first sentence of the comment at the top of a file, without what Hydra reads there."""
    text = " ".join(comment_lines(path.read_text(encoding="utf-8")))
    return re.split(r"(?<!al)\. ", text)[0].removesuffix(".")


def comment_lines(text: str) -> Iterator[str]:
    """The comment at the top of a file, without Hydra's package and without commands, which are indented by three."""
    for line in text.splitlines():
        if line.startswith(("# @package", "#   ")) and not line.startswith("#    "):
            continue
        if not line.startswith("# "):
            return
        yield line[2:]


def _settings(pairs: list[Any], prefix: str, lines: list[str], path: Path) -> Iterator[Setting]:
    for name, value in pairs:
        key = f"{prefix}{name.value}"
        is_section = isinstance(value, yaml.MappingNode) and not value.flow_style and bool(value.value)
        end = name.end_mark if is_section else value.end_mark
        comment = _comment(lines, end.line, end.column, beside=name.start_mark.column)
        yield Setting(key, "" if is_section else _written(value, lines), comment, path)
        if is_section:
            yield from _settings(value.value, f"{key}.", lines, path)


def _written(node: Any, lines: list[str]) -> str:
    """The text of a value; a list or a text of several lines is written in one."""
    start, end = node.start_mark, node.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column].strip() or "null"
    value = yaml.safe_load(yaml.serialize(node))
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("\n...")


def _comment(lines: list[str], line: int, column: int, *, beside: int) -> str:
    """The comment behind a place, and the lines below it that hold only a comment further right than the key."""
    if line >= len(lines):
        return ""
    _, sign, first = lines[line][column:].partition("#")
    if not sign:
        return ""
    parts = [first.strip()]
    for below in lines[line + 1 :]:
        text = below.lstrip()
        if not text.startswith("#") or len(below) - len(text) <= beside:
            break
        parts.append(text.lstrip("#").strip())
    return " ".join(parts)
