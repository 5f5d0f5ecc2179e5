"""What a config reads from the environment: for the run as if it had been typed, for records as it is written."""

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
NAMING = ("run.", "logger.wandb.", "data.name")  # what is there is used for names, as the environment has it
_ROUNDS = 50_000  # of the hash that stands for a value: nobody should find it by trying


def with_environment(config: DictConfig, schema: type[BaseModel], *, inside: Path = ()) -> DictConfig:
    """A copy in which a value from the environment is what Hydra makes of the same text on a command line.

    It stays a text where the schema has no other place for it, and below a name of secrets.

    Args:
        config: composed by Hydra.
        schema: of the config, or of its part `inside`.
        inside: where that part stands.

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


def told_values(config: DictConfig, schema: type[BaseModel]) -> dict[str, Any]:
    """The config for records: resolved, but for texts from the environment, which may be secrets.

    Numbers from there are numbers here, unless their name is one of secrets.
    """

    def keep(path: Path, raw: str) -> Any:
        try:
            value = _value_at(config, path)
        except OmegaConfBaseException:  # not set, where nobody needs it
            return _uninterpreted(raw)
        typed = as_typed(value) if isinstance(value, str) else value
        is_told = _is_number(typed) and not _is_hidden(path, raw, value)
        return typed if is_told and _fits(schema, path, typed) else _uninterpreted(raw)

    return _resolved(config, keep)


def kept_texts(config: DictConfig) -> dict[str, Any]:
    """The config, resolved but for the environment: all that somebody has written into it."""
    return _resolved(config, lambda path, raw: _uninterpreted(raw))


def comparable(public: Any, values: Any, key: str = "") -> Any:
    """`told_values` in which a hash stands beside what the environment says: runs with other values differ.

    Not for secrets: another password is no other run.

    Args:
        public: or a part of it.
        values: the same, resolved.
        key: where it stands.
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
    """What arguments read from the environment, without a default, and is not there: a sentence for each."""
    return [
        f"{text.partition('=')[0]}: the environment has no variable {name}. {unset_remedy(name)}"
        for text in texts
        for name in re.findall(r"\$\{\s*oc\.env\s*:\s*(\w+)\s*\}", text)
        if name not in environ
    ]


def unset_remedy(name: str) -> str:
    """What to do about a variable that is not there."""
    return f"Export it before the start, or write a default, ${{oc.env:{name},VALUE}}."


def as_typed(text: str) -> Any:
    """What Hydra makes of `KEY=text`; the text itself, where that would be a sweep, an interpolation or no syntax.

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
    """Also several, or none."""
    return all(map(_is_number, value)) if isinstance(value, list) else value is None or isinstance(value, (int, float))


def _is_hidden(path: Path, raw: str, value: Any) -> bool:
    names = [str(next((part for part in reversed(path) if isinstance(part, str)), "")), *variables_in(raw)]
    return any(names_secret(name) or is_secret(name, value) for name in names)


def _each_variable(raw: Any, read: Callable[[Path, str], Any], path: Path = ()) -> Any:
    """A nested container with something in place of every text that reads the environment."""
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
    """Then it stays as it is, in itself and in what refers to it."""
    # An even number of backslashes before `${` leaves it an interpolation.
    return re.sub(r"(\\*)\$\{", lambda found: found[0] if len(found[1]) % 2 else "\\" + found[0], raw)


def _escaped(value: Any) -> Any:
    """A value that is none of OmegaConf's interpolations, whatever signs are in it."""
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
    """Whether the schema has a place for such a value there; where it says nothing, for any."""
    kinds = _kinds(schema, path)
    return not kinds or Any in kinds or type(value) in kinds or (float in kinds and type(value) is int)


def _kinds(annotation: Any, path: Path) -> set[Any]:
    """The types that may stand at a place of the schema; none if there is no such place."""
    from pydantic import BaseModel  # a moment, which --help need not wait for

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
