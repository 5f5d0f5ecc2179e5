"""Resolves `oc.env` in a config: for the run as if the text had been typed, for records as it is written."""

from __future__ import annotations

import hashlib
import os
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from largebatch.records.credentials import is_secret, names_secret, variables_in

if TYPE_CHECKING:
    from pydantic import BaseModel

Path = tuple[Any, ...]
NAMING = ("run.", "logger.", "data.name")  # keys whose values name folders, charts or runs of trackers
_ROUNDS = 50_000  # of the hash that stands for a value, against guessing


def with_environment(config: DictConfig, schema: type[BaseModel], *, inside: Path = ()) -> DictConfig:
    """A copy of the config in which Hydra's command-line parser has read each value from the environment.

    A value stays a text where the schema takes only texts, and under a name that looks like a secret.

    Args:
        config: composed by Hydra.
        schema: of the config, or of its section `inside`.
        inside: path of that section.

    Raises:
        OmegaConfBaseException: if a variable is not set.
    """

    def read(path: Path, raw: str) -> Any:
        value = _value_at(config, path)
        if not isinstance(value, str):
            return value
        typed = value if _is_hidden(path, raw, value) else as_typed(value)
        is_part = path[: len(inside)] == inside
        return _escaped(typed if not is_part or _fits(schema, path[len(inside) :], typed) else value)

    raw = OmegaConf.to_container(config, resolve=False)
    return _created(_each_variable(raw, read)) if _reads(raw) else config


def recorded_values(config: DictConfig, schema: type[BaseModel]) -> dict[str, Any]:
    """The config for records: resolved, except texts from the environment, which may be secrets.

    Numbers from the environment are recorded, unless their name looks like a secret.
    """

    def keep(path: Path, raw: str) -> Any:
        try:
            value = _value_at(config, path)
        except OmegaConfBaseException:  # an unset variable that the run does not need
            return _uninterpreted(raw)
        typed = as_typed(value) if isinstance(value, str) else value
        is_public = _is_number(typed) and not _is_hidden(path, raw, value)
        return typed if is_public and _fits(schema, path, typed) else _uninterpreted(raw)

    return _resolved(config, keep)


def kept_texts(config: DictConfig) -> dict[str, Any]:
    """The config as it was written: resolved, except the environment."""
    return _resolved(config, lambda path, raw: _uninterpreted(raw))


def comparable(public: Any, values: Any, key: str = "") -> Any:
    """`recorded_values` with a hash beside each value from the environment, so that runs with other values differ.

    Secrets have no hash: a run with another password is the same run.

    Args:
        public: recorded values, or a part of them.
        values: the same part, resolved.
        key: its dotted key.
    """
    if isinstance(public, dict) and isinstance(values, dict):
        return {name: comparable(part, values.get(name), f"{key}.{name}") for name, part in public.items()}
    if isinstance(public, list) and isinstance(values, list) and len(public) == len(values):
        return [comparable(part, value, key) for part, value in zip(public, values, strict=True)]
    if not isinstance(public, str) or not variables_in(public) or _is_hidden((key,), public, values):
        return public
    digest = hashlib.pbkdf2_hmac("sha256", str(values).encode(), key.encode(), _ROUNDS).hex()[:8]
    return f"{public} (hash {digest})"


def unset_variables(texts: Sequence[str], environ: typing.Mapping[str, str] = os.environ) -> list[str]:
    """An error for each variable that an argument reads without a default and that is not set."""
    return [
        f"{text.partition('=')[0]}: the environment has no variable {name}. {unset_remedy(name)}"
        for text in texts
        for name in re.findall(r"\$\{\s*oc\.env\s*:\s*(\w+)\s*\}", text)
        if name not in environ
    ]


def unset_remedy(name: str) -> str:
    """The remedy for a variable that is not set."""
    return f"Export it before the start, or write a default, ${{oc.env:{name},VALUE}}."


def as_typed(text: str) -> Any:
    """The value that Hydra reads from `KEY=text`; the text itself if that is a sweep, interpolation or syntax error.

    >>> [as_typed(text) for text in ("7", "1e-3", "[a, b]", "a,b", "007", "null")]
    [7, 0.001, ['a', 'b'], 'a,b', '007', None]
    """
    if "${" in text or not text:
        return text
    try:
        override = OverridesParser.create().parse_override(f"x={text}")
    except (HydraException, ValueError):
        return text
    return text if override.is_sweep_override() else override.value()


def _is_number(value: Any) -> bool:
    """Whether it is a number, a list of numbers, or None."""
    return all(map(_is_number, value)) if isinstance(value, list) else value is None or isinstance(value, (int, float))


def _is_hidden(path: Path, raw: str, value: Any) -> bool:
    names = [str(next((part for part in reversed(path) if isinstance(part, str)), "")), *variables_in(raw)]
    return any(names_secret(name) or is_secret(name, value) for name in names)


def _each_variable(raw: Any, read: Callable[[Path, str], Any], path: Path = ()) -> Any:
    """A nested container with `read(path, text)` in place of every text that reads the environment."""
    if isinstance(raw, dict):
        return {key: _each_variable(value, read, (*path, key)) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_each_variable(value, read, (*path, place)) for place, value in enumerate(raw)]
    return read(path, raw) if _reads(raw) else raw


def _reads(raw: Any) -> bool:
    """Whether a container reads the environment anywhere."""
    if isinstance(raw, (dict, list)):
        return any(map(_reads, raw.values() if isinstance(raw, dict) else raw))
    return isinstance(raw, str) and "oc.env" in raw


def _uninterpreted(raw: str) -> str:
    """The text, escaped so that OmegaConf does not resolve it, here or in values that refer to it."""
    # An even number of backslashes before `${` leaves it an interpolation.
    return re.sub(r"(\\*)\$\{", lambda found: found[0] if len(found[1]) % 2 else "\\" + found[0], raw)


def _escaped(value: Any) -> Any:
    """The value, escaped so that OmegaConf takes no part of it for an interpolation."""
    if isinstance(value, dict):
        return {key: _escaped(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_escaped(part) for part in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _value_at(config: DictConfig, path: Path) -> Any:
    node: Any = config
    for part in path:
        node = node[part]
    return node


def _created(plain: Any) -> DictConfig:
    made = OmegaConf.create(plain)
    assert isinstance(made, DictConfig)
    return made


def _resolved(config: DictConfig, read: Callable[[Path, str], Any]) -> dict[str, Any]:
    raw = OmegaConf.to_container(config, resolve=False)
    kept = _created(_each_variable(raw, read)) if _reads(raw) else config
    values = OmegaConf.to_container(kept, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _fits(schema: type[BaseModel], path: Path, value: Any) -> bool:
    """Whether the schema takes a value of this type at `path`; where it has no type, it takes any."""
    kinds = _kinds(schema, path)
    return not kinds or Any in kinds or type(value) in kinds or (float in kinds and type(value) is int)


def _kinds(annotation: Any, path: Path) -> set[Any]:
    """The types that the schema takes at `path`; empty if it has no such path."""
    from pydantic import BaseModel  # slow; --help does not need it

    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(path[0])) if path else None
        return _kinds(field.annotation, path[1:]) if field else set()
    if origin is typing.Annotated:
        return _kinds(arguments[0], path)
    if origin in (typing.Union, types.UnionType):
        return {kind for one in arguments for kind in _kinds(one, path)}
    if origin is typing.Literal:
        return set() if path else {type(one) for one in arguments}
    if origin in (list, dict):
        return _kinds(arguments[-1], path[1:]) if path else {origin}
    return set() if path else {annotation}
