"""Reads a composed config; reports all errors together, before any process group."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from largebatch.records.credentials import (
    credential_problems,
    hide_variables,
    is_secret_variable,
    redacted,
    variables_in,
)
from largebatch.records.renamed import renamed_in_config
from largebatch.run.config.did_you_mean import meant_by_key
from largebatch.run.config.environment import NAMING, kept_texts, recorded_values, unset_remedy, with_environment
from largebatch.run.config.schema import TrainConfig
from largebatch.run.config.targets import target_problems

Section = TypeVar("Section", bound=BaseModel)
_ABSENT = re.compile(r"Environment variable '(\w+)' not found")


class ConfigError(ValueError):
    """All errors of a run's input, one line each: fact, rule, remedy. Notes may give the background."""

    def __init__(self, errors: Sequence[str], notes: Sequence[str] = ()) -> None:
        assert errors
        errors = list(dict.fromkeys(errors))  # two checks may meet the same one
        self.errors, self.notes = list(map(redacted, errors)), list(map(redacted, notes))
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        lines = [f"{count} in the configuration:", *(f"  - {error}" for error in errors)]
        super().__init__("\n".join([*lines, *(f"  note: {note}" for note in notes)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str], list[str]]]:
        """Pickle errors and notes, so that the parent process shows a worker's error unchanged."""
        return type(self), (self.errors, self.notes)


def parse_config(config: DictConfig) -> TrainConfig:
    """Check types, ranges and names of a composed config, and every `_target_` against LARGEBATCH_TARGETS if set.

    Raises:
        ConfigError: with all errors.
    """
    require_values(config)
    values = OmegaConf.to_container(with_environment(config, TrainConfig), resolve=True)
    if renamed := renamed_in_config(cast(dict[str, Any], values)):
        raise ConfigError(renamed)
    refused = target_problems(values)
    try:
        parsed = TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError([*refused, *_explain(error, kept_texts(config))]) from None
    if refused:
        raise ConfigError(refused)
    return parsed


def parse_section(config: DictConfig, name: str, schema: type[Section]) -> Section:
    """Check the section of one verb, and remove it from the config.

    Raises:
        ConfigError: with all errors of the section.
    """
    require_values(config)
    written = kept_texts(config)
    section = OmegaConf.to_container(with_environment(config, schema, inside=(name,))[name], resolve=True)
    with open_dict(config):
        del config[name]
    try:
        return schema.model_validate(section)
    except ValidationError as error:
        raise ConfigError(_explain(error, written, schema, inside=(name,))) from None


def require_no_secrets(config: DictConfig) -> None:
    """Refuse a config that holds a secret. From now on output shows variables that it reads by name, not by value.

    Raises:
        ConfigError: with the key of each secret, without its value.
    """
    try:
        written = kept_texts(config)
    except OmegaConfBaseException:  # a dangling reference, reported later
        written = cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
    texts = list(_texts(written))
    named = {key: variables_in(text) for key, text in texts if key.startswith(NAMING)}
    hide_variables(
        {name for _, text in texts for name in variables_in(text)} - {one for of in named.values() for one in of}
    )
    problems = credential_problems(written) + [
        f"{key}: ${{oc.env:{name}}} looks like a secret, and this text names folders, charts or W&B runs. Leave it out."
        for key, names in named.items()
        for name in names
        if is_secret_variable(name)
    ]
    if problems:
        raise ConfigError(problems)


def _texts(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The texts of a nested container by dotted key."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(part, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, str):
        yield prefix, value


def require_one_process(environ: Mapping[str, str], rule: str) -> None:
    """Refuse a launcher with several processes.

    Args:
        environ: of the process.
        rule: why the verb needs one process, and how to start it.

    Raises:
        ConfigError: with the number of processes and the rule.
    """
    if (started := environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError([f"WORLD_SIZE={started}: {rule}"])


def require_values(config: DictConfig) -> None:
    """Refuse a config with a missing value, or with a reference to something that does not exist.

    Raises:
        ConfigError: with all of them.
    """
    if unresolved := list(_unresolved(config)):
        raise ConfigError(unresolved)


def _unresolved(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[str]:
    """Errors for missing values and dangling references."""
    keys: Iterable[Any] = range(len(node)) if isinstance(node, ListConfig) else map(str, node)
    for key in keys:
        name = f"{prefix}{key}"
        if OmegaConf.is_missing(node, key):
            yield f"{name}=???: has no default. Give {name}=VALUE."
            continue
        try:
            value = node[key]
        except InterpolationToMissingValueError:  # reported at its source
            continue
        except OmegaConfBaseException as error:
            if absent := _ABSENT.search(str(error)):
                yield f"{name}: the environment has no variable {absent[1]}. {unset_remedy(absent[1])}"
                continue
            yield f"{name}: {str(error).splitlines()[0]}. Set the variable or key that it refers to."
            continue
        if isinstance(value, (DictConfig, ListConfig)):
            yield from _unresolved(value, f"{name}.")


def _explain(
    error: ValidationError,
    written: dict[str, Any],
    schema: type[BaseModel] = TrainConfig,
    *,
    inside: tuple[str, ...] = (),
) -> list[str]:
    """A line for each error; values from the environment are shown as they are `written`."""
    lines = []
    for detail in map(partial(_as_written, written=written, inside=inside), error.errors()):
        key = ".".join(str(part) for part in (*inside, *detail["loc"]) if part != "[key]")
        if detail["type"] == "missing":
            lines.append(f"{key}: is missing. Give {key}=VALUE, or set it in the file of its group.")
        elif key in ("experiment", "debug"):
            lines.append(
                f"{key}: its file sets keys below {key}, which has none. Start the file with `# @package _global_`."
            )
        elif detail["type"] == "extra_forbidden":
            lines.append(
                f"{key}={detail['input']}: there is no such key.{_nearest_key(detail['loc'], detail['input'], schema)}"
            )
        else:
            given = f"={detail['input']}" if detail["loc"] else ""  # printing a whole section would hide the rule
            lines.append(f"{key}{given}: {_rule(detail)}{_first_inside(detail, schema, inside)}")
    return lines


def _as_written(detail: Any, *, written: dict[str, Any], inside: tuple[str, ...]) -> dict[str, Any]:
    """A pydantic error with the text of the config in place of the environment's value."""
    text: Any = written
    with contextlib.suppress(LookupError, TypeError):  # a list from the environment, or a missing key
        for part in (*inside, *detail["loc"]):
            text = text[part]
    if not isinstance(text, str) or not variables_in(text):
        return dict(detail)
    return {**detail, "input": text, "msg": detail["msg"].replace(str(detail["input"]), text)}


_RULES = {
    "int_type": "must be a whole number.",
    "int_from_float": "must be a whole number.",
    "float_type": "must be a number.",
    "finite_number": "must be finite.",
    "string_type": "must be text; quote it if it looks like a number.",
    "bool_type": "must be true or false.",
    "dict_type": "must be a group of keys.",
    "model_type": "must be a group of keys.",
    "list_type": "must be a list, [a, b].",
    "string_too_short": "must not be empty.",
    "string_pattern_mismatch": "must match the regular expression {pattern}.",
    "greater_than": "must be above {gt}.",
    "greater_than_equal": "must be at least {ge}.",
    "less_than": "must be below {lt}.",
    "less_than_equal": "must be at most {le}.",
    "literal_error": "must be {expected}.",
}


def _rule(detail: Any) -> str:
    template = _RULES.get(detail["type"])
    if template is None:
        return str(detail["msg"]).removeprefix("Value error, ")
    value = detail["input"]
    whole = detail["type"].startswith("int") and isinstance(value, float) and value.is_integer()
    return str(template.format(**detail.get("ctx", {}))) + (f" Write {int(value)}." if whole else "")


def _first_inside(detail: Any, schema: type[BaseModel], inside: tuple[str, ...]) -> str:
    """A key of the section that was given a value."""
    start = f"{'.'.join(map(str, detail['loc']))}."
    key = next((key for key in _keys(schema) if detail["type"] == "model_type" and key.startswith(start)), "")
    return f" Set one of them, such as {'.'.join((*inside, key))}." if key else ""


def _nearest_key(location: tuple[int | str, ...], value: Any, schema: type[BaseModel]) -> str:
    section: Any = schema
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    name = ".".join(map(str, location))
    meant = meant_by_key(name, list(_keys(schema)), "" if isinstance(value, (dict, list)) else str(value))
    own = f" One of your own is {name}._target_=MODULE.CLASS." if section.model_config.get("extra") == "allow" else ""
    return (f" {meant}" if meant else f" Known here: {', '.join(section.model_fields)}.") + own


def _keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of a schema, sections included."""
    for name, field in schema.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")


def public_values(config: DictConfig) -> dict[str, Any]:
    """The config for records, see `recorded_values`."""
    return recorded_values(config, TrainConfig)
