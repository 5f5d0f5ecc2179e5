"""`largebatch VERB --help`: how to call it, every key with its value and comment, every group with its choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from largebatch.cli.catalogue.composed import Catalogue, typed_choices
from largebatch.cli.catalogue.files import Setting
from largebatch.cli.pages.layout import setting_row, two_columns, wrapped

_FLAGS = (
    ("--config-dir FOLDER", "a folder with choices of your own, FOLDER/GROUP/NAME.yaml"),
    ("--multirun, -m", "one run after another for KEY=A,B"),
    ("--cfg job", "print the composed config as YAML; --resolve with references replaced"),
    ("--info defaults", "print the files that it is made of"),
)


def verb_page(config_name: str, overrides: Sequence[str], catalogue: Catalogue, width: int) -> str:
    """The page of a verb with the choices and values that were typed beside --help.

    Args:
        config_name: of its primary config.
        overrides: KEY=VALUE.
        catalogue: of conf/, and of the user's folder.
        width: of a line.
    """
    chosen = typed_choices(overrides, catalogue)
    settings = _with_typed(catalogue.settings(config_name, chosen), overrides)
    in_use, sections = catalogue.in_use(config_name, chosen), _sections(settings)
    lines = [*header(config_name, catalogue, width), "", "Flags:", *two_columns(_FLAGS, width)]
    for section in sections:
        lines += ["", *_section(section, settings, in_use, catalogue, width)]
    for group, names in in_use.items():
        if group not in sections:  # its files set keys of other sections
            title = f"{group}={','.join(names)}:" if names else f"{group}=NAME, none by default:"
            lines += ["", title, *two_columns(_typed(group, catalogue), width, indent=4)]
    lines += ["", *wrapped(_MORE, width)]
    return "\n".join(lines)


_MORE = (
    "`largebatch help KEY`, `help GROUP`, `help GROUP=CHOICE` and `help WORD` tell more about one of them. A key that "
    "only your own class has is added with a plus: +KEY=VALUE."
)


def header(config_name: str, catalogue: Catalogue, width: int) -> list[str]:
    """What the verb does and how it is called, as its file in conf/ says; commands are not wrapped."""
    path = next(path for folder in catalogue.folders if (path := folder / f"{config_name}.yaml").is_file())
    read: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    lines: list[str] = []
    for line in str(read["hydra"]["help"]["header"]).strip().splitlines():
        is_command, goes_on = line.startswith(" "), bool(lines) and bool(lines[-1]) and not lines[-1].startswith(" ")
        if line and goes_on and not is_command:
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return [part for line in lines for part in ([line] if line.startswith(" ") or not line else wrapped(line, width))]


def _with_typed(settings: Mapping[str, Setting], overrides: Sequence[str]) -> dict[str, Setting]:
    typed = {key.lstrip("+"): value for key, equals, value in (one.partition("=") for one in overrides) if equals}
    return {
        key: replace(one, value=typed[key]) if key in typed and not one.is_section else one
        for key, one in settings.items()
    }


def _sections(settings: Mapping[str, Setting]) -> list[str]:
    """Top-level keys without sections, as one; then the sections."""
    return ["", *dict.fromkeys(key.partition(".")[0] for key in settings if "." in key)]


def _section(
    section: str,
    settings: Mapping[str, Setting],
    in_use: Mapping[str, Sequence[str]],
    catalogue: Catalogue,
    width: int,
) -> Iterator[str]:
    if not section:
        yield "Settings of the run:"
        yield from two_columns((setting_row(one) for key, one in settings.items() if _is_alone(key, settings)), width)
        return
    chosen = ",".join(in_use.get(section, ()))
    comment = settings[section].comment if section in settings else ""
    title = f"{section}={chosen}" if chosen else section
    yield from wrapped(f"{title}: {comment}" if comment else f"{title}:", width)
    choices = _typed(section, catalogue) if chosen else []
    if len(choices) > 1:
        yield from two_columns(choices, width, indent=4)
    inside = [one for key, one in settings.items() if key.startswith(f"{section}.")]
    yield from two_columns((setting_row(one) for one in inside if one.comment or not one.is_section), width)


def _typed(group: str, catalogue: Catalogue) -> list[tuple[str, str]]:
    """The choices of a group as they are typed, and their descriptions."""
    return [(f"{group}={name}", text) for name, text in catalogue.choices(group).items()]


def _is_alone(key: str, settings: Mapping[str, Setting]) -> bool:
    return "." not in key and not any(other.startswith(f"{key}.") for other in settings)
