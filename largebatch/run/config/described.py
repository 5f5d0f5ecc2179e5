"""The type and range of a key in words, from the schema."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from largebatch.run.config.types import OneOf

_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def type_of(key: str, schema: type[BaseModel]) -> str:
    """What a dotted key takes; empty if the schema leaves it open, as the arguments of a class.

    >>> from largebatch.run.config.schema import TrainConfig
    >>> type_of("batch.micro", TrainConfig), type_of("guard.policy", TrainConfig)
    ('a whole number, at least 1; or null', 'off, log, skip or rollback')
    >>> type_of("optimizer.momentum", TrainConfig)
    ''
    """
    field = _field(key, schema)
    return "" if field is None else _in_words(field.annotation, field.metadata, field.description)


def names_of(key: str, schema: type[BaseModel]) -> tuple[str, ...]:
    """The names that a dotted key takes; empty if it takes other values than names.

    >>> from largebatch.run.config.schema import TrainConfig
    >>> names_of("schedule.warmup_from", TrainConfig), names_of("seed", TrainConfig)
    (('base_lr', 'zero', 'null'), ())
    """
    field = _field(key, schema)
    return () if field is None else tuple(_names(field.annotation, field.metadata))


def _field(key: str, schema: type[BaseModel]) -> FieldInfo | None:
    section: Any = schema
    *sections, last = key.split(".")
    for name in sections:
        field = section.model_fields.get(name) if _is_section(section) else None
        section = field.annotation if field else None
    return section.model_fields.get(last) if _is_section(section) else None


def _names(annotation: Any, metadata: Sequence[Any] = ()) -> list[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _names(arguments[0], arguments[1:])
    if origin is typing.Literal:
        return list(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        found = [name for one in arguments for name in _names(one)]
        return [*found, "null"] if found and type(None) in arguments else found
    if annotation is bool:
        return ["true", "false"]
    return list(_one_of(metadata))


def _one_of(metadata: Sequence[Any]) -> tuple[str, ...]:
    checks = [one.func for one in metadata if isinstance(one, AfterValidator)]
    return next((check.names for check in checks if isinstance(check, OneOf)), ())


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _in_words(annotation: Any, metadata: Sequence[Any] = (), description: str | None = None) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        fields = [one for one in arguments[1:] if isinstance(one, FieldInfo)]
        described = next((one.description for one in fields if one.description), description)
        inner = [bound for one in fields for bound in one.metadata]
        return _in_words(arguments[0], [*arguments[1:], *inner, *metadata], described)
    if description:
        return description
    if origin is typing.Literal:
        return _either(arguments)
    if origin in (typing.Union, types.UnionType):
        found = [_in_words(one) for one in arguments if one is not type(None)]
        found += ["null"] if any(found) and type(None) in arguments else []
        return "; or ".join(one for one in dict.fromkeys(found) if one)
    if origin is list:
        return f"a list [a, b], each {inside}" if (inside := _in_words(arguments[0])) else "a list [a, b]"
    if origin is dict or annotation is dict:
        return "{name: value}" if typing.get_args(annotation)[1:] != (Any,) else ""
    if names := _one_of(metadata):
        return _either(names)
    return ", ".join([_WORDS[annotation], *_bounds(metadata)]) if annotation in _WORDS else ""


def _either(names: Iterable[Any]) -> str:
    *first, last = map(str, names)
    return f"{', '.join(first)} or {last}" if first else last


def _bounds(metadata: Iterable[Any]) -> list[str]:
    """Of annotated_types, which pydantic makes of the bounds of a field."""
    return [
        f"{words} {value}"
        for one in metadata
        for name, words in _BOUNDS.items()
        if (value := getattr(one, name, None)) is not None and not isinstance(one, FieldInfo)
    ]
