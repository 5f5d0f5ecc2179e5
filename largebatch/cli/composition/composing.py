"""Composes conf/ with Hydra for a verb. Errors become one report and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from largebatch import conf_dir
from largebatch.cli.composition.listed_hydra import NotListedError, held_to_the_list
from largebatch.cli.composition.remedies import (
    QUOTING,
    flag_problem,
    is_syntax,
    keys_of,
    number_for_a_group,
    overrides_and_flags,
    remedy,
    sweep_problem,
)
from largebatch.cli.composition.withheld import error_handler, secrets_of_files, variable_problems
from largebatch.cli.process.held_screen import HeldScreen, print_once, refuse
from largebatch.cli.process.leaving import EXIT_FAILED, EXIT_UNSAVED, EXIT_WRONG_INPUT
from largebatch.records.renamed import renamed_in_config, renamed_on_command_line

_SWEEP_FLAGS = ("-m", "--multirun")

Verb = Callable[[DictConfig, list[str]], int]


def compose_config(overrides: Sequence[str] = (), *, config_name: str = "train") -> DictConfig:
    """Compose a config as the command line would.

    Inside a verb this uses its search path, so that choices of a --config-dir are found.

    Args:
        overrides: as typed.
        config_name: name of the primary config.

    Raises:
        hydra.errors.HydraException: if the overrides cannot be composed.
        ConfigError: if an override has an old name.
    """
    if problems := renamed_on_command_line(overrides):
        from largebatch.run.config.reading import ConfigError  # imports torch

        raise ConfigError(problems)
    if GlobalHydra.instance().is_initialized():
        return compose(config_name, overrides=list(overrides))
    with held_to_the_list(), initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose(config_name, overrides=list(overrides))


def run_verb(
    verb: str, function: Verb, arguments: Sequence[str], *, config_name: str = "train", joins: bool = True
) -> int:
    """Compose conf/`config_name`.yaml with `arguments` and call `function(config, overrides)`.

    Args:
        verb: name of the verb.
        function: the verb's work; returns an exit code.
        arguments: command line after the verb.
        config_name: name of the primary config.
        joins: whether the process joins a job as a rank; then a launcher that starts copies is refused.

    Returns:
        the function's exit code, for a sweep the worst one; 2 if the arguments cannot be composed.
    """
    keys = partial(_keys, config_name)
    if problem := _problem(verb, arguments, config_name, keys):
        return refuse(problem)
    codes: list[int] = []
    own_process = os.getpid()
    overrides, flags = overrides_and_flags(arguments)
    sys.argv = [f"largebatch {verb}", *overrides, *flags]

    # Launchers of a sweep pickle this function and everything it refers to.
    @hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)
    def compose(config: DictConfig) -> None:
        screen = sys.stderr.release() if isinstance(sys.stderr, HeldScreen) else sys.stderr
        with contextlib.redirect_stderr(screen):
            code = _call(function, config, config_name, joins=joins)
        if os.getpid() != own_process and code:
            raise _FailedJobError(f"a job of the sweep ended with exit code {code}; its own output says why")
        codes.append(code)

    held = HeldScreen()
    try:
        with contextlib.redirect_stderr(held), held_to_the_list():
            compose()
    except SystemExit as exit_:
        if not codes:
            _print_remedy(exit_.__context__, held, keys, arguments)
            return _code_without_call(exit_, is_sweep=_is_sweep(arguments))
    except (
        HydraException,
        OmegaConfBaseException,
    ) as error:  # Hydra does not report those of --help and of its folders
        held.write(f"{error}\n")
        _print_remedy(error, held, keys, arguments)
        return EXIT_WRONG_INPUT
    finally:
        held.release()
    return max(codes, default=0)


def _problem(verb: str, arguments: Sequence[str], config_name: str, keys: Callable[[], list[str]]) -> str | None:
    """An error that Hydra would accept, or report without a remedy."""
    if renamed := renamed_on_command_line(overrides_and_flags(arguments)[0]):
        return "\n".join(renamed)
    if _is_sweep(arguments) and (problem := sweep_problem(verb, arguments, _number("WORLD_SIZE", 1))):
        return problem
    if problems := variable_problems(arguments) or secrets_of_files(arguments, partial(_with_files, config_name)):
        return "\n".join(problems)
    return flag_problem(arguments, keys) or number_for_a_group(arguments, Path(conf_dir()), keys)


def _with_files(
    config_name: str, overrides: Sequence[str], *, folder: str | None, name: str | None, more: str | None
) -> DictConfig:
    """Compose as Hydra does with --config-path FOLDER, --config-name NAME and --config-dir MORE."""
    searched = [f"hydra.searchpath=['file://{os.path.abspath(more)}']"] if more else []
    searched_first = os.path.abspath(folder) if folder else conf_dir()
    with held_to_the_list(), initialize_config_dir(searched_first, version_base="1.3"):
        return compose(name or config_name, overrides=[*overrides, *searched])


def _keys(config_name: str) -> list[str]:
    config = OmegaConf.to_container(compose_config(config_name=config_name))
    assert isinstance(config, dict)
    return list(keys_of({str(key): value for key, value in config.items()}))


def _print_remedy(
    error: BaseException | None, held: HeldScreen, keys: Callable[[], list[str]], arguments: Sequence[str]
) -> None:
    """Replace Hydra's message: its advice for an unknown key, a plus, would lead to the next error."""
    if isinstance(error, YAMLError):
        held.drop()
        print_once(
            f"a config file is not valid YAML: {' '.join(str(error).split())}. Quote texts that contain : ? * & % "
            "{ } [ ], and indent with blanks."
        )
    if isinstance(error, (NotListedError, OmegaConfBaseException)):
        held.drop()
        print_once(str(error).partition("\n    full_key: ")[0])
        return
    if not isinstance(error, HydraException):
        return
    message = f"{error}\n{error.__cause__ or ''}"
    if found := remedy(message, keys, arguments, Path(conf_dir())):
        held.drop()
        print_once(found)
    elif is_syntax(message):
        held.release()
        print_once(QUOTING)


class _FailedJobError(CompactHydraException):
    """A job of a sweep failed in another process. Hydra prints only the message, in the parent process."""


def _code_without_call(exit_: SystemExit, *, is_sweep: bool) -> int:
    """The exit code if Hydra ended before the call: --help, bad overrides, or a failed job in another process."""
    if isinstance(exit_.__context__, _FailedJobError) and is_sweep:
        return EXIT_FAILED
    return EXIT_WRONG_INPUT if exit_.code else 0


def _call(function: Verb, config: DictConfig, config_name: str, *, joins: bool) -> int:
    from torch.distributed.elastic.multiprocessing.errors import record

    from largebatch.records.durable_files import NotWrittenError
    from largebatch.training.raised import RunFailedError

    # Unresolved: overrides are recorded, and a value from the environment may be a secret.
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    try:
        # `record` must be inside hydra.main: outside, torchrun would not see which rank failed first and why.
        # It also installs a fault handler, which fails on a notebook's stderr. Only a launcher needs it.
        report = record(_with_report, error_handler()) if "TORCHELASTIC_RUN_ID" in os.environ else _with_report
        return report(function, config, overrides, config_name, joins) or 0
    except RunFailedError as error:
        print(f"largebatch: {error}", file=sys.stderr)
        return EXIT_FAILED
    except NotWrittenError as error:
        print(f"largebatch: {error}. Make room, or choose another place.", file=sys.stderr)
        return EXIT_FAILED
    except (Exception, SystemExit):  # sys.exit() in a model or a data set is a failure, whatever its code
        traceback.print_exc()
        return EXIT_FAILED


def _with_report(function: Verb, config: DictConfig, overrides: list[str], config_name: str, joins: bool) -> int:
    """Call the verb; wrong input becomes a report and an exit code, without a traceback."""
    from largebatch.cli.composition.overruled import overruled_choices
    from largebatch.distributed.launcher_environment import start_problems
    from largebatch.distributed.rendezvous import LauncherError
    from largebatch.records.checkpoint import CheckpointError, NotSavedError
    from largebatch.run.config.environment import with_environment
    from largebatch.run.config.reading import ConfigError, require_no_secrets
    from largebatch.run.config.schema import TrainConfig

    expected = None
    with contextlib.suppress(OmegaConfBaseException):  # unresolvable values are reported with all other errors
        expected = OmegaConf.select(with_environment(config, TrainConfig), "launcher.num_processes")
    try:
        require_no_secrets(config)  # first, because other messages repeat values
        swept = HydraConfig.get().sweeper.get("params") or {}  # of a file: one old name stops all jobs
        renamed = renamed_on_command_line([f"{key}={value}" for key, value in swept.items()])
        if renamed := renamed + renamed_in_config(cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))):
            raise ConfigError(renamed)
        if joins and (copies := start_problems(os.environ, num_processes=expected)):
            raise ConfigError(copies)
        compose = partial(compose_config, config_name=config_name)
        for note in overruled_choices(config, overrides, compose=compose):
            print_once(note)
        return function(config, overrides)
    except ConfigError as error:
        return refuse(str(error))
    except (LauncherError, CheckpointError) as error:
        print_once(str(error))
        return EXIT_UNSAVED if isinstance(error, NotSavedError) else EXIT_WRONG_INPUT


def _is_sweep(arguments: Sequence[str]) -> bool:
    return any(argument in _SWEEP_FLAGS for argument in arguments)


def _number(variable: str, default: int) -> int:
    """A number that a launcher has set. A text that is no number gives the default; it is reported later."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default
