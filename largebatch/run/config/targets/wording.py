"""Words the error for an argument of a wrong type: the accepted type, the given type, and what to write.

YAML and Hydra may read `no`, `1e-3` or `none` as texts, and Python takes every non-empty text for true.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from largebatch.run.config.did_you_mean import did_you_mean
from largebatch.run.config.targets.annotations import INTEGERS, MAPPINGS, PLAIN, REALS, SEQUENCES, fits, kind_of, misfit

_TRUTH = {"true": True, "yes": True, "on": True, "y": True, "t": True}
_TRUTH |= {"false": False, "no": False, "off": False, "n": False, "f": False}
_NOTHING = ("none", "null", "nil", "~")
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?\.?(inf|infinity|nan)|0x[0-9a-f]+", re.IGNORECASE)
_SPECIAL = re.compile(r"([+-]?)\.?(inf|nan)(?:inity)?")
_SPELT = ("None", "null")  # in Python and in YAML; `none` may be a choice


def problem_of_type(value: Any, annotation: Any, default: Any) -> str:
    """The error of a value, to be read after "takes"; empty if it fits, or that is unknown.

    Args:
        value: of the config: plain, or lists and mappings that may hold objects and nodes.
        annotation: evaluated; `inspect.Parameter.empty`: there is none, and a default number only excludes texts.
        default: of the parameter.

    >>> problem_of_type("no", bool, False)
    'true or false, and this is a text, which counts as true. Write false.'
    >>> problem_of_type(64.0, int, 1), problem_of_type("auto", "any", 1), problem_of_type(1, float, 0.5)
    ('a whole number, and this is a number. Write 64.', '', '')
    """
    if type(value) not in PLAIN or (type(value) is type(default) and value == default):
        return ""
    is_slip = default is None and isinstance(value, str) and value in _SPELT
    if annotation is inspect.Parameter.empty:
        if type(default) in (bool, int, float) and isinstance(value, str) and _reads_as_value(value):
            kind = type(default)
            return f"{_words(kind)}, as its default {default} is, and this is {_given(value, kind)}"
    elif not fits(value, annotation):
        if value is None and default is not inspect.Parameter.empty:
            return f"{_words(annotation)}, and this is null. Leave it out for its default."
        return f"{_words(annotation)}, and this is {_given(value, annotation)}"
    elif type(None) not in _scalars(annotation):
        is_slip = False
    return f"null for nothing, and this is the text {value}. Write null." if is_slip else ""


def _reads_as_value(text: str) -> bool:
    word = text.strip().lower()
    return word in _TRUTH or word in _NOTHING or _NUMBER.fullmatch(word) is not None


def _given(value: Any, annotation: Any) -> str:
    """The kind of the given value, and what to write in its place."""
    kinds = set(_scalars(annotation))
    takes_int, takes_real = bool(kinds & set(INTEGERS)), bool(kinds & set(REALS))
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUTH and bool in kinds:
            return f"a text, which counts as true. Write {str(_TRUTH[word]).lower()}."
        if word in _NOTHING and type(None) in kinds:
            return "a text. Write null."
        if _NUMBER.fullmatch(word) and (takes_int or takes_real):
            if special := _SPECIAL.fullmatch(word):
                sign, name = special[1], special[2]
                return f"a text. Write {sign}.{name} in a file, {sign}{name} on the command line."
            return "a text. Write the number without quotes."
        texts = [one for one in _choices(annotation) if isinstance(one, str)]
        return f"{'another' if texts else 'a'} text.{did_you_mean(value, texts) or ' Give such a value.'}"
    if isinstance(value, bool):
        return f"{str(value).lower()}. Give such a value."
    if isinstance(value, (int, float)):
        if bool in kinds and value in (0, 1):
            return f"a number. Write {str(bool(value)).lower()}."
        if takes_int and isinstance(value, float) and value.is_integer():
            return f"a number. Write {int(value)}."
        if str in kinds:
            return f"a number. Put it into quotes, '\"{value}\"'."
        return f"a number. {f'Write [{value}].' if fits([value], annotation) else 'Give such a value.'}"
    if isinstance(value, (list, tuple)):
        if part := misfit(value, annotation):
            return f"a list in which {part[0]!r} is {_given(*part)}"
        return f"a list of {len(value)}. Give such a value."
    if isinstance(value, dict):
        return f"{'another' if kinds & set(MAPPINGS) else 'a'} group of keys. Give such a value."
    return "null. Give such a value."


def _choices(annotation: Any) -> Iterator[Any]:
    kind, arguments = kind_of(annotation)
    for one in arguments if kind in (typing.Union, typing.Literal) else ():
        yield from _choices(one) if kind is typing.Union else [one]


def _scalars(annotation: Any) -> Iterator[Any]:
    kind, arguments = kind_of(annotation)
    if kind is typing.Union:
        for one in arguments:
            yield from _scalars(one)
    else:
        yield kind


def _words(annotation: Any) -> str:
    kind, arguments = kind_of(annotation)
    if kind is typing.Union:
        return " or ".join(dict.fromkeys(_words(one) for one in arguments))
    if kind is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if kind in SEQUENCES:
        parts = [one for one in arguments if one is not Ellipsis]
        each = " and ".join(dict.fromkeys(map(_words, parts)))
        count = f" of {len(parts)}" if kind is tuple and parts and Ellipsis not in arguments else ""
        return f"a list{count}{', each ' if each else ''}{each}"
    if kind in MAPPINGS:
        return "a group of keys" + (f", each with {_words(arguments[1])}" if len(arguments) == 2 else "")
    words = {bool: "true or false", str: "a text", type(None): "null"}
    words |= dict.fromkeys(INTEGERS, "a whole number") | dict.fromkeys(REALS, "a number")
    return words.get(kind) or str(getattr(kind, "__name__", kind))
