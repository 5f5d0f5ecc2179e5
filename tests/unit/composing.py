"""Composes conf/ as the command line does, but fast enough for tables of overrides."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from largebatch import conf_dir

GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in sorted(Path(conf_dir()).iterdir())
    if folder.is_dir() and folder.name not in ("advise", "attribute", "study")  # sections of other verbs
}


@functools.cache
def compose_choices(*choices: str, config_name: str = "train") -> DictConfig:
    """What Hydra makes of `GROUP=CHOICE ...`; shared, so not to be changed."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose(config_name, overrides=list(choices))


@functools.cache
def _pickled(*choices: str, config_name: str) -> bytes:
    """To be copied from: six times as fast as `copy.deepcopy` of a config."""
    return pickle.dumps(compose_choices(*choices, config_name=config_name))


@functools.cache
def _parsed(override: str) -> Override:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return parsed


def compose_run(*overrides: str, config_name: str = "train") -> DictConfig:
    """The composed config for overrides as on the command line.

    Hydra composes the groups once per combination; values are parsed by its grammar and set as it sets them.
    """
    parsed = [_parsed(one) for one in overrides]
    of_groups = [one for one in parsed if one.key_or_group in GROUPS and not one.is_delete()]
    config: DictConfig = pickle.loads(_pickled(*(one.input_line for one in of_groups), config_name=config_name))
    for one in parsed:
        if one in of_groups:
            continue
        if one.is_delete():
            parent, _, key = one.key_or_group.rpartition(".")
            with open_dict(config):
                del (OmegaConf.select(config, parent) if parent else config)[key]
        else:
            OmegaConf.update(config, one.key_or_group, one.value(), merge=True, force_add=one.is_add())
    return config
