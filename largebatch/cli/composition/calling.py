"""Calls a verb with its composed config; errors become a report and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from largebatch.cli.composition.hidden_choices import hidden_choices
from largebatch.cli.composition.problems import wrong_values
from largebatch.cli.composition.withheld import error_handler
from largebatch.cli.process.leaving import EXIT_FAILED, EXIT_UNSAVED
from largebatch.cli.process.refusing import print_once, refuse
from largebatch.distributed.launcher_environment import start_problems
from largebatch.records.renamed import renamed_in_config, renamed_on_command_line

Verb = Callable[[DictConfig, list[str]], int]
Compose = Callable[[Sequence[str]], DictConfig]


def call(function: Verb, config: DictConfig, *, compose: Compose, joins: bool) -> int:
    """Check the config without importing torch, then call the verb.

    Args:
        function: the verb's work; returns an exit code.
        config: as composed.
        compose: composes the same primary config with other overrides.
        joins: whether the process joins a job as a rank; then a launcher that starts copies is refused.
    """
    from largebatch.run.config.reading import ConfigError

    # Unresolved: overrides are recorded, and a value from the environment may be a secret.
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    leave_to_its_verb(config, overrides, config_name=str(HydraConfig.get().job.config_name))
    try:
        _check(config, overrides, compose, joins=joins)
    except ConfigError as error:
        return refuse(str(error), error.errors)
    return _reporting(function, config, overrides)


def leave_to_its_verb(config: DictConfig, overrides: Sequence[str], *, config_name: str) -> DictConfig:
    """Drop the settings of `advise` that an experiment of advice brings: its run is one for every verb.

    Advice names commands of other verbs with the same experiment. Typed settings stay, and are refused.
    """
    name = "advise"
    typed = any(one.lstrip("+~").startswith((f"{name}.", f"{name}=")) for one in overrides)
    if name in config and config_name != name and not typed:
        with open_dict(config):
            del config[name]
    return config


def _check(config: DictConfig, overrides: list[str], compose: Compose, *, joins: bool) -> None:
    """Raise ConfigError for what can be known without torch; print notes about choices that others overrule."""
    from largebatch.cli.composition.overruled import overruled_choices
    from largebatch.run.config.environment import with_environment
    from largebatch.run.config.reading import ConfigError, require_no_secrets
    from largebatch.run.config.schema import TrainConfig

    expected = None
    with contextlib.suppress(OmegaConfBaseException):  # unresolvable values are reported with all other errors
        expected = OmegaConf.select(with_environment(config, TrainConfig), "launcher.num_processes")
    require_no_secrets(config)  # first, because other messages repeat values
    swept = HydraConfig.get().sweeper.get("params") or {}  # of a file: one old name stops all jobs
    renamed = renamed_on_command_line([f"{key}={value}" for key, value in swept.items()])
    if renamed := renamed + renamed_in_config(cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))):
        raise ConfigError(renamed)
    if hidden := hidden_choices():
        raise ConfigError(hidden)
    resume, trunk = str(config.get("resume")), OmegaConf.select(config, "cooldown.checkpoint")
    if without_effect := _resume_without_effect(str(HydraConfig.get().job.config_name), resume, trunk):
        raise ConfigError([without_effect])
    if joins and (copies := start_problems(os.environ, num_processes=expected)):
        raise ConfigError(copies)
    notes = overruled_choices(config, overrides, compose=compose)
    if wrong := wrong_values(config, str(HydraConfig.get().job.config_name)):
        raise ConfigError(wrong)
    for note in notes:
        print_once(note)


_INSTEAD_OF_RESUME = {
    "advise": "The same command with the same run.dir continues it.",
    "attribute": "The same command with the same run.dir continues it.",
    "find_lr": "The test starts from model.weights=PATH.",
    "find_micro": "It takes a few steps from the start, which leave no trace.",
    "measure": "It measures the weights of measure.checkpoint=PATH.",
    "study": "The same command with the same run.dir continues it.",
    "textbook": "Its runs are made anew.",
    "verify": "It compares a few steps from the start, of the weights model.weights=PATH.",
}


def _resume_without_effect(config_name: str, resume: str, trunk: str | None = None) -> str:
    """The error of a verb that is to resume or to leave a trunk, and goes on from nothing; empty if there is none."""
    instead = _INSTEAD_OF_RESUME.get(config_name)
    verb = config_name.replace("_", "-")
    if instead is None:
        return ""
    if trunk is not None:
        return f"cooldown.checkpoint={trunk}: `largebatch {verb}` goes on from no run. Use train or plan."
    return "" if resume in ("none", "None") else f"resume={resume}: `largebatch {verb}` resumes no run. {instead}"


def _reporting(function: Verb, config: DictConfig, overrides: list[str]) -> int:
    """Call the verb. A rank that fails leaves its error to torchrun."""
    from largebatch.records.durable_files import NotWrittenError
    from largebatch.training.raised import RunFailedError

    try:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return _with_report(function, config, overrides)
        from torch.distributed.elastic.multiprocessing.errors import record

        # `record` must be inside hydra.main: outside, torchrun would not see which rank failed first and why.
        # It also installs a fault handler, which fails on a notebook's stderr. Only a launcher needs it.
        return record(_with_report, error_handler())(function, config, overrides) or 0
    except RunFailedError as error:
        print(f"largebatch: {error}", file=sys.stderr)
        return EXIT_FAILED
    except NotWrittenError as error:
        print(f"largebatch: {error}. Make room, or choose another place.", file=sys.stderr)
        return EXIT_FAILED
    except (Exception, SystemExit):  # sys.exit() in a model or a data set is a failure, whatever its code
        traceback.print_exc()
        return EXIT_FAILED


def _with_report(function: Verb, config: DictConfig, overrides: list[str]) -> int:
    """Call the verb; wrong input becomes a report and an exit code, without a traceback."""
    from largebatch.distributed.rendezvous import LauncherError
    from largebatch.records.checkpoint import CheckpointError, NotSavedError
    from largebatch.run.config.reading import ConfigError

    try:
        return function(config, overrides)
    except ConfigError as error:
        return refuse(str(error), error.errors)
    except (LauncherError, CheckpointError) as error:
        if isinstance(error, NotSavedError):
            print_once(str(error))
            return EXIT_UNSAVED
        return refuse(str(error))
