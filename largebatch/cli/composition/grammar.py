"""Arguments that Hydra's grammar cannot read: blanks beside `=`, brackets split by the shell, signs without quotes."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from largebatch.cli.composition.wrong import Wrong
from largebatch.run.config.other_tools import sentence_for_key

QUOTING = (
    "The shell interprets quotes, brackets, braces, blanks and $: put the whole argument into single quotes, "
    "'KEY=[a,b]'. Put a text with other signs than letters, digits and -_./ into double quotes inside them, "
    "'KEY=\"a=b\"'."
)
_PAIRS = {"[": "]", "{": "}", "(": ")"}
_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+")


def unreadable(arguments: Sequence[str], groups: Path, *, is_sweep: bool) -> list[Wrong]:
    """An error for each argument that is no KEY=VALUE of Hydra's grammar.

    Args:
        arguments: without flags.
        groups: conf/, whose files are the choices of groups.
        is_sweep: whether several values of a key start several runs.

    >>> [one.text for one in unreadable(["seed", "3", "length=", "1ep", "clip_norm=1"], Path(), is_sweep=False)]
    ['seed 3: an argument is KEY=VALUE. Write seed=3.', 'length= 1ep: an argument is KEY=VALUE. Write length=1ep.']
    """
    found, place = [], 0
    while place < len(arguments):
        wrong = _wrong(arguments[place:], groups, is_sweep=is_sweep)
        found += [wrong] if wrong else []
        place += len(wrong.arguments) if wrong else 1
    return found


def parsed(argument: str) -> Override | None:
    """The argument as Hydra reads it; None if it cannot."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _wrong(arguments: Sequence[str], groups: Path, *, is_sweep: bool) -> Wrong | None:
    first = arguments[0]
    if apart := _apart(arguments):
        return apart
    override = parsed(first)
    if override is None:
        if "=" not in first:
            return Wrong((first,), f"{first}: an argument is KEY=VALUE.{_word(first, groups)}")
        return _split_by_the_shell(arguments) or Wrong((first,), f"{first}: {_signs(first)}")
    if override.is_sweep_override() and not is_sweep:
        return Wrong((first,), f"{first}: {_several(first)}")
    return None


def _apart(arguments: Sequence[str]) -> Wrong | None:
    """`KEY = VALUE`, `KEY =VALUE`, `KEY= VALUE` and `KEY VALUE`."""
    first, second, third = [*arguments[:3], "", "", ""][:3]
    is_key = re.fullmatch(r"[+~]*[A-Za-z_][\w./@]*", first) is not None and not first.endswith((".yaml", ".yml"))
    given: tuple[str, ...]
    if is_key and second == "=" and third:
        given, written = (first, second, third), f"{first}={third}"
    elif (is_key and second.startswith("=") and second != "=") or (
        first.endswith("=") and is_value(second) and parsed(first + second)
    ):
        given, written = (first, second), first + second
    elif is_key and not first.startswith("~") and is_value(second) and not re.fullmatch(r"[A-Za-z]+", second):
        given, written = (first, second), f"{first}={second}"
    else:
        return None
    key, _, value = written.partition("=")
    instead = sentence_for_key(key, value) or f"Write {written}."
    return Wrong(given, f"{' '.join(given)}: an argument is KEY=VALUE. {instead}")


def is_value(argument: str) -> bool:
    """Whether an argument can only be the value of the one before it."""
    return bool(argument) and "=" not in argument and not argument.startswith("-")


def _split_by_the_shell(arguments: Sequence[str]) -> Wrong | None:
    """A value whose bracket or quote is closed by a later argument, or by none."""
    open_signs = _open(arguments[0])
    if not open_signs:
        return None
    for count in range(2, len(arguments) + 1):
        joined = " ".join(arguments[:count])
        if not _open(joined):
            return Wrong(tuple(arguments[:count]), f"{joined}: the shell has split it at its blanks. Write '{joined}'.")
    closed = arguments[0] + "".join(_PAIRS.get(sign, sign) for sign in reversed(open_signs))
    advice = f"Write the whole argument in single quotes, such as '{closed}'."
    return Wrong(tuple(arguments[:1]), f"{arguments[0]}: {open_signs[-1]} is not closed. {advice}")


def _open(text: str) -> str:
    """Brackets, braces and quotes that are not closed, in their order."""
    signs: list[str] = []
    for sign in text:
        if signs and signs[-1] in "'\"":
            signs = signs[:-1] if sign == signs[-1] else signs
        elif sign in "'\"" or sign in _PAIRS:
            signs.append(sign)
        elif signs and sign == _PAIRS[signs[-1]]:
            signs.pop()
    return "".join(signs)


def _signs(argument: str) -> str:
    """What to write for a value with a sign of the grammar."""
    key, _, value = argument.partition("=")
    if value.startswith("~/"):
        return f"the shell expands ~ only at the start of a word. Write {key}=$HOME{value[1:]}."
    if value.strip(",") != value:
        return "a value is missing beside a comma. " + QUOTING
    # The shell has taken the quotes of KEY=['a','b']: inside of a list each text needs its own.
    texts = value[1:-1].split(",") if re.fullmatch(r"\[.*\]", value) else [value]
    quoted = ",".join(f'"{text.strip()}"' for text in texts)
    quoted = f"{key}={quoted}" if texts == [value] else f"{key}=[{quoted}]"
    if '"' not in value and parsed(quoted):
        return f"a text with such signs needs double quotes. Write '{quoted}'."
    return "it cannot be read. " + QUOTING


def _several(argument: str) -> str:
    key, _, value = argument.partition("=")
    number = f" One number: {key}={value.replace(',', '')}." if _THOUSANDS.fullmatch(value) else ""
    text = "" if any(sign in value for sign in "()\"'") else f" A list: '{key}=[{value}]'."
    return f"several values are a sweep: add --multirun for one run after another.{number}{text}"


def _word(word: str, groups: Path) -> str:
    """The argument that a lone word may stand for."""
    if word.endswith((".yaml", ".yml")):
        return (
            f" For settings of a file save them as FOLDER/experiment/{Path(word).stem}.yaml, with the first line "
            f"`# @package _global_`, and give --config-dir FOLDER experiment={Path(word).stem}."
        )
    if word == "help":
        return " Write --help for every key, or `largebatch help WORD` for one."
    choices = [f"{group}={word}" for group in _groups_with(word, groups)]
    return f" Write {' or '.join(choices)}." if choices else ""


@functools.cache
def _groups_with(word: str, groups: Path) -> tuple[str, ...]:
    if not re.fullmatch(r"[\w-]+", word):
        return ()
    return tuple(_each_group(word.casefold(), groups))


def _each_group(word: str, groups: Path) -> Iterator[str]:
    for path in sorted(groups.glob(f"[!_.]*/{word}.yaml")):
        yield path.parent.name
