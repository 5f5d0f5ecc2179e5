"""Typed choices that an experiment overrules, because Hydra composes experiments last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from largebatch import conf_dir
from largebatch.cli.composition.misread import misread_numbers
from largebatch.cli.composition.remedies import keys_of
from largebatch.run.config.reading import ConfigError

LATER = ("experiment", "debug")  # groups that Hydra composes after all others


def overruled_choices(
    config: DictConfig, overrides: Sequence[str], *, compose: Callable[[Sequence[str]], DictConfig]
) -> list[str]:
    """A note for each typed choice whose values an experiment or a debug group has replaced in part.

    Args:
        config: as composed.
        overrides: as typed.
        compose: composes the same primary config with other overrides.

    Raises:
        ConfigError: if every value of a choice is replaced, or YAML misreads a number of a file.
    """
    if misread := misread_numbers(conf_dir()):
        raise ConfigError(misread)
    runtime = HydraConfig.get().runtime
    winners = [f"{group}={runtime.choices[group]}" for group in LATER if runtime.choices.get(group)]
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    typed = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(list(overrides))}
    choices = {
        group: found
        for group, name in typed.items()
        if group not in LATER and (found := _settings(group, name, folders))
    }
    if not winners or not choices:
        return []
    try:
        others = [one for one in overrides if one.partition("=")[0].lstrip("+~") not in LATER]
        alone = compose(others)
    except HydraException:  # a key that only the experiment has
        return []
    notes = []
    for group, values in choices.items():
        lost = {
            key: value
            for key, value in values.items()
            if key not in typed and _value(alone, key) == value and _value(config, key) != value
        }
        values_now = ", ".join(f"{key}={_value(config, key)} (not {value})" for key, value in lost.items())
        sentence = f"{' and '.join(winners)} overrules {group}={typed[group]}: {values_now}."
        if lost and len(lost) == len(values):
            raise ConfigError(
                [f"{sentence} Nothing of the choice remains. Give the values themselves: {_typed(lost)}."]
            )
        if lost:
            notes.append(f"{sentence} To keep the choice, add {_typed(lost)}.")
    return notes


def _settings(group: str, name: Any, folders: Sequence[Path]) -> dict[str, Any]:
    """The values that the file of a choice sets itself, by dotted key; none if the choice has no file."""
    path = next((path for folder in folders if (path := folder / group / f"{name}.yaml").is_file()), None)
    loaded = OmegaConf.load(path) if path else None
    if path is None or not isinstance(loaded, DictConfig):
        return {}
    loaded.pop("defaults", None)
    is_global = path.read_text(encoding="utf-8").startswith("# @package _global_")
    section = loaded if is_global else OmegaConf.create({group: loaded})
    plain = OmegaConf.to_container(section)
    assert isinstance(plain, dict)
    every = {key: _value(section, key) for key in keys_of({str(key): value for key, value in plain.items()})}
    return {key: value for key, value in every.items() if not isinstance(value, dict)}


def _value(config: Any, key: str) -> Any:
    """The value as written: an interpolation stays a text."""
    plain = OmegaConf.to_container(config)
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain


def _typed(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())
