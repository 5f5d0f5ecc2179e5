"""Composes conf/ with Hydra for a verb; errors become one report and an exit code."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
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
from largebatch.cli.process.held_screen import HEAD_START_S, HeldScreen, is_first_of_machine
from largebatch.cli.process.leaving import EXIT_FAILED, EXIT_UNSAVED, EXIT_WRONG_INPUT
from largebatch.records.renamed import renamed_in_config, renamed_on_command_line

_SWEEP_FLAGS = ("-m", "--multirun")

Verb = Callable[[DictConfig, list[str]], int]


def compose_config(overrides: Sequence[str] = (), *, config_name: str = "train") -> DictConfig:
    """The config that a command line of these overrides would have, without one.

    Inside a verb with its search path, so that choices of a --config-dir are found, too.

    Raises:
        hydra.errors.HydraException: if the overrides cannot be composed.
        ConfigError: if they hold names of before.
    """
    if problems := renamed_on_command_line(overrides):
        from largebatch.run.config.reading import ConfigError  # only now: torch comes with it

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
        verb: as it is typed.
        function: what it does; returns an exit code.
        arguments: of the command line.
        config_name: of the primary config.
        joins: whether it becomes a rank of a job, and must not if it is a copy of one.

    Returns:
        the function's exit code, the worst one of a sweep; 2 if the arguments cannot be composed.
    """
    keys = partial(_keys, config_name)
    if problem := _problem(verb, arguments, config_name, keys):
        _report(problem)
        return EXIT_WRONG_INPUT
    codes: list[int] = []
    own_process = os.getpid()
    overrides, flags = overrides_and_flags(arguments)
    sys.argv = [f"largebatch {verb}", *overrides, *flags]

    # Launchers of a sweep pickle it, with what it refers to.
    @hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)
    def compose(config: DictConfig) -> None:
        screen = sys.stderr.release() if isinstance(sys.stderr, HeldScreen) else sys.stderr
        with contextlib.redirect_stderr(screen):
            code = _call(function, config, config_name, joins=joins)
        if os.getpid() != own_process and code:
            raise _FailedJobError(f"a job of the sweep ended with exit code {code}; it printed why")
        codes.append(code)

    held = HeldScreen()
    try:
        with contextlib.redirect_stderr(held), held_to_the_list():
            compose()
    except SystemExit as exit_:
        if not codes:
            _tell_remedy(exit_.__context__, held, keys, arguments)
            return _code_without_call(exit_, is_sweep=_is_sweep(arguments))
    except HydraException as error:  # of --help, whose errors Hydra does not report itself
        held.write(f"{error}\n")
        _tell_remedy(error, held, keys, arguments)
        return EXIT_WRONG_INPUT
    finally:
        held.release()
    return max(codes, default=0)


def _problem(verb: str, arguments: Sequence[str], config_name: str, keys: Callable[[], list[str]]) -> str | None:
    """Errors that Hydra would accept, or report without a remedy."""
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
    """As Hydra composes with --config-path FOLDER, --config-name NAME and --config-dir MORE."""
    searched = [f"hydra.searchpath=['file://{os.path.abspath(more)}']"] if more else []
    searched_first = os.path.abspath(folder) if folder else conf_dir()
    with held_to_the_list(), initialize_config_dir(searched_first, version_base="1.3"):
        return compose(name or config_name, overrides=[*overrides, *searched])


def _keys(config_name: str) -> list[str]:
    config = OmegaConf.to_container(compose_config(config_name=config_name))
    assert isinstance(config, dict)
    return list(keys_of({str(key): value for key, value in config.items()}))


def _tell_remedy(
    error: BaseException | None, held: HeldScreen, keys: Callable[[], list[str]], arguments: Sequence[str]
) -> None:
    """Replace a message of Hydra: its own advice for an unknown key, a plus, would lead to the next error."""
    if isinstance(error, YAMLError):
        held.drop()
        _report(
            f"a config file is not valid YAML: {' '.join(str(error).split())}. Quote texts that contain : ? * & % "
            "{ } [ ], and indent with blanks."
        )
    if isinstance(error, NotListedError):
        held.drop()
        _report(str(error))
        return
    if not isinstance(error, HydraException):
        return
    message = f"{error}\n{error.__cause__ or ''}"
    if found := remedy(message, keys, arguments, Path(conf_dir())):
        held.drop()
        _report(found)
    elif is_syntax(message):
        held.release()
        _report(QUOTING)


class _FailedJobError(CompactHydraException):
    """Of a job in another process; Hydra prints its text alone, in the process that waits for all of them."""


def _code_without_call(exit_: SystemExit, *, is_sweep: bool) -> int:
    """The exit code after Hydra has ended by itself: --help, overrides it cannot compose, a job in another process."""
    if isinstance(exit_.__context__, _FailedJobError) and is_sweep:
        return EXIT_FAILED
    return EXIT_WRONG_INPUT if exit_.code else 0


def _call(function: Verb, config: DictConfig, config_name: str, *, joins: bool) -> int:
    from torch.distributed.elastic.multiprocessing.errors import record

    from largebatch.records.durable_files import NotWrittenError
    from largebatch.training.raised import RunFailedError

    # Not resolved: what they take from the environment may be a secret, and they are recorded.
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    try:
        # Inside hydra.main: outside of it, torchrun would not see which rank failed first and why.
        # record asks for a fault handler, which a notebook's screen has no place for: only a launcher needs it.
        report = record(_with_report, error_handler()) if "TORCHELASTIC_RUN_ID" in os.environ else _with_report
        return report(function, config, overrides, config_name, joins) or 0
    except RunFailedError as error:
        print(f"largebatch: {error}", file=sys.stderr)
        return EXIT_FAILED
    except NotWrittenError as error:
        print(f"largebatch: {error}. Make room, or choose another place.", file=sys.stderr)
        return EXIT_FAILED
    except (Exception, SystemExit):  # sys.exit() in a model or a data set: no end of a run, whatever its code
        traceback.print_exc()
        return EXIT_FAILED


def _with_report(function: Verb, config: DictConfig, overrides: list[str], config_name: str, joins: bool) -> int:
    """Wrong input gives a report and an exit code, no traceback."""
    from largebatch.cli.composition.overruled import overruled_choices
    from largebatch.distributed.launcher_environment import start_problems
    from largebatch.distributed.runtime import LauncherError
    from largebatch.records.checkpoint import CheckpointError, NotSavedError
    from largebatch.run.config.environment import with_environment
    from largebatch.run.config.reading import ConfigError, require_no_secrets
    from largebatch.run.config.schema import TrainConfig

    expected = None
    with contextlib.suppress(OmegaConfBaseException):  # what cannot be resolved is reported with all other keys
        expected = OmegaConf.select(with_environment(config, TrainConfig), "launcher.num_processes")
    try:
        require_no_secrets(config)  # first: other messages repeat values
        if renamed := renamed_in_config(cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))):
            raise ConfigError(renamed)
        if joins and (copies := start_problems(os.environ, num_processes=expected)):
            raise ConfigError(copies)
        compose = functools.partial(compose_config, config_name=config_name)
        for note in overruled_choices(config, overrides, compose=compose):
            _report(note)
        return function(config, overrides)
    except (ConfigError, LauncherError, CheckpointError) as error:
        _report(str(error))
        if isinstance(error, ConfigError) and not is_first_of_machine():
            time.sleep(HEAD_START_S)
        return EXIT_UNSAVED if isinstance(error, NotSavedError) else EXIT_WRONG_INPUT


def _is_sweep(arguments: Sequence[str]) -> bool:
    return any(argument in _SWEEP_FLAGS for argument in arguments)


def _number(variable: str, default: int) -> int:
    """A launcher's number; the default where it is none, which is reported with everything else."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default


def _report(message: str) -> None:
    """One copy per machine."""
    if is_first_of_machine():
        print(f"largebatch: {message}", file=sys.stderr)
