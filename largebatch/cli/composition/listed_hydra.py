"""Checks Hydra's own settings against LARGEBATCH_TARGETS: callbacks, launchers, logging, search paths.

Hydra acts on them before a verb sees the config, so the check replaces private classes of Hydra. If a release of Hydra
lacks them, a process with a list does not start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from hydra._internal import hydra as hydra_internals
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from largebatch.run.config.targets import ALLOW_LIST, listed, listing_problem, name_problem, named_by, target_nodes

# Launchers and sweepers that run only the job itself; submitit's settings may run commands.
_LAUNCHERS = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
}
_HANDLERS = {"StreamHandler", "FileHandler", "NullHandler", "Formatter", "Filter"}
_HANDLERS |= {"handlers.RotatingFileHandler", "handlers.TimedRotatingFileHandler", "handlers.WatchedFileHandler"}
_NAMING = ("()", "class", "queue", "listener")  # keys of a logging config whose values are imported
_OF_HYDRA = "${hydra.runtime.output_dir}/${hydra.job.name}.log"  # Hydra's own log file
_SCREENS = ("ext://sys.stdout", "ext://sys.stderr")


class NotListedError(CompactHydraException):
    """A setting of Hydra names something that the list does not allow."""


@contextlib.contextmanager
def held_to_the_list() -> Iterator[None]:
    """Inside, check every config that Hydra composes before Hydra acts on it. Without a list do nothing."""
    if listed() is None:
        yield
        return
    before = hydra_internals.ConfigLoaderImpl
    hydra_internals.ConfigLoaderImpl = _ListedLoader  # type: ignore[misc]
    try:
        yield
    finally:
        hydra_internals.ConfigLoaderImpl = before  # type: ignore[misc]


class _ListedRepository(ConfigRepository):
    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Refuse packages that are neither plugins nor on the list: Hydra imports them."""
        given = [one for one in config_search_path.get_path() if one.provider in ("main", "command-line")]
        given += [one for one in config_search_path.get_path() if str(one.provider).startswith("hydra.searchpath")]
        for one in given:
            scheme, is_url, name = str(one.path).partition("://")
            if is_url and scheme != "file":
                _require([name_problem("hydra.searchpath", name.replace("/", "."))])
        super().initialize_sources(config_search_path)


class _ListedLoader(ConfigLoaderImpl):
    """Hydra's loader with the check. Jobs of a sweep in other processes unpickle it."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        self.config_search_path = config_search_path
        self.repository = _ListedRepository(config_search_path=config_search_path)

    def load_configuration(self, *args: Any, **kwargs: Any) -> DictConfig:
        config = super().load_configuration(*args, **kwargs)
        _require(list(_problems_of_hydra(config)))
        return config


def _require(problems: list[str]) -> None:
    if found := [one for one in problems if one]:
        raise NotListedError("\n".join(found))


def _problems_of_hydra(config: DictConfig) -> Iterator[str]:
    raw: Any = OmegaConf.to_container(config.hydra, resolve=False)
    for name in ("callbacks", "launcher", "sweeper"):
        try:
            section = OmegaConf.to_container(config.hydra[name], resolve=True)
        except OmegaConfBaseException as error:
            yield f"hydra.{name}: cannot be checked against the list of {ALLOW_LIST}: {str(error).splitlines()[0]}."
            continue
        for key, node in target_nodes(section, f"hydra.{name}"):
            if name == "callbacks" or str(node["_target_"]) not in _LAUNCHERS:
                yield listing_problem(*named_by(key, node))
    if raw["job"]["env_set"]:
        yield f"hydra.job.env_set: with {ALLOW_LIST} variables are set where the process is started. Leave it out."
    for name in ("hydra_logging", "job_logging"):
        yield from _problems_of_logging(raw[name], f"hydra.{name}")


def _problems_of_logging(value: Any, key: str) -> Iterator[str]:
    """Logging imports classes and functions by name, resolves any `ext://` text, and writes to any file."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name == "." or (name == "filename" and not str(part).endswith(".log")):
                yield (
                    f"{key}.{name}={part}: what logging writes could be imported. With {ALLOW_LIST} the file name "
                    "ends with .log, and no attributes of a handler are set. Leave it out."
                )
            if name in _NAMING and isinstance(part, str) and "${" not in part:
                yield "" if part.removeprefix("logging.") in _HANDLERS else listing_problem(f"{key}.{name}", part)
            yield from _problems_of_logging(part, f"{key}.{name}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _problems_of_logging(part, f"{key}.{number}")
    elif isinstance(value, str) and "${" in value and value != _OF_HYDRA:
        yield f"{key}={value}: with {ALLOW_LIST} logging takes no interpolations. Write the value itself."
    elif isinstance(value, str) and value.strip().startswith("ext://") and value not in _SCREENS:
        yield listing_problem(key, value.strip().removeprefix("ext://"))
