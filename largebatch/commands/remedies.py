"""What Hydra's own messages leave out: the nearest name, and what to type instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from largebatch.nearest import did_you_mean

_KEY = re.compile(r"Could not (?:override|delete from config\.) '(\S+)'")
_CHOICE = re.compile(r"Could not find '(\S+)/(\S+)'\s+Available options in '\1':\n((?:\t.*(?:\n|$))+)")
_SEVERAL = re.compile(r"Multiple values for (\S+)\. .*'override \S+ (\S+)'")
_SYNTAX = re.compile(r"no viable alternative|mismatched input|extraneous input|missing \w+ at|LexerNoViableAlt")


def remedy(message: str, keys: Callable[[], Sequence[str]]) -> str:
    """A sentence to print below an error of Hydra; empty where there is nothing to add.

    Args:
        message: of the error.
        keys: tells those of the config, such as `batch.total`; asked only where they matter.

    >>> remedy("Could not override 'batch.totl'.", lambda: ["batch.total", "seed"])
    "Did you mean 'batch.total'?"
    >>> remedy("Multiple values for debug. To override a value use 'override debug: tiny'", list)
    'debug has a choice already: drop the plus of +debug=tiny.'
    """
    if key := _KEY.search(message):
        return did_you_mean(key[1], keys()).lstrip()
    if choice := _CHOICE.search(message):
        group, given, options = choice.groups()
        return did_you_mean(f"{group}={given}", (f"{group}={one.strip()}" for one in options.splitlines())).lstrip()
    if several := _SEVERAL.search(message):
        return f"{several[1]} has a choice already: drop the plus of +{several[1]}={several[2]}."
    if _SYNTAX.search(message):
        return (
            "An argument is KEY=VALUE. A shell takes quotes, brackets, braces and blanks for itself: put the whole "
            "argument into single quotes, 'KEY=[a,b]', and a text that has such signs into double ones inside, "
            "'KEY=\"a=b\"'."
        )
    return ""


def number_for_a_group(arguments: Sequence[str], groups: Path, keys: Callable[[], Sequence[str]]) -> str | None:
    """What is wrong with `batch=64`, of which Hydra makes a traceback; None if there is no such argument.

    Args:
        arguments: of the command line.
        groups: the folder conf/, whose folders are the groups.
        keys: as for `remedy`.
    """
    for argument in arguments:
        group = argument.partition("=")[0]
        if group and (groups / group).is_dir() and not _is_choice(argument):
            choices = ", ".join(sorted(path.stem for path in (groups / group).glob("*.yaml")))
            example = next((f", such as {key}" for key in keys() if key.startswith(f"{group}.")), "")
            return f"{argument}: {group} is a group of settings, chosen by name ({choices}). Set one of them{example}."
    return None


def keys_of(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of all values of a nested dict, sections included."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")


def _is_choice(argument: str) -> bool:
    """Whether Hydra can look for it, or merge it; what it cannot parse, it says itself."""
    try:
        value = OverridesParser.create().parse_override(argument)
    except HydraException:
        return True
    return value.is_sweep_override() or isinstance(value.value(), (str, list, dict))
