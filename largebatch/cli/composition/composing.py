"""Composes conf/ with Hydra for a verb. Errors become one report and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from largebatch import conf_dir
from largebatch.cli.catalogue.composed import Catalogue, typed_choices
from largebatch.cli.composition.calling import Verb, call, leave_to_its_verb
from largebatch.cli.composition.flags import HELP, files_of, is_sweep, overrides_and_flags
from largebatch.cli.composition.listed_hydra import NotListedError, held_to_the_list
from largebatch.cli.composition.problems import as_one, with_the_others, wrong_before_hydra
from largebatch.cli.composition.remedies import keys_of, remedy, sweep_problem
from largebatch.cli.composition.withheld import secrets_of_files, variable_problems
from largebatch.cli.composition.wrong import Wrong
from largebatch.cli.process.held_screen import HeldScreen
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED, EXIT_WRONG_INPUT
from largebatch.cli.process.refusing import refuse
from largebatch.records.renamed import renamed_on_command_line


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
    with contextlib.ExitStack() as stack:
        if not GlobalHydra.instance().is_initialized():
            stack.enter_context(held_to_the_list())
            stack.enter_context(initialize_config_dir(conf_dir(), version_base="1.3"))
        config = compose(config_name, overrides=list(overrides))
    return leave_to_its_verb(config, overrides, config_name=config_name)


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
    line = CommandLine(verb, arguments, config_name)
    if problems := line.problems():
        return refuse(as_one(problems), problems)
    if set(HELP) & set(arguments):
        return line.help()
    codes: list[int] = []
    own_process = os.getpid()
    overrides, flags = overrides_and_flags(arguments)
    sys.argv = [f"largebatch {verb}", *overrides, *flags]

    # Launchers of a sweep pickle this function and everything it refers to.
    @hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)
    def compose(config: DictConfig) -> None:
        screen = sys.stderr.release() if isinstance(sys.stderr, HeldScreen) else sys.stderr
        with contextlib.redirect_stderr(screen):
            code = call(function, config, compose=partial(compose_config, config_name=config_name), joins=joins)
        if os.getpid() != own_process and code:
            raise _FailedJobError(f"a job of the sweep ended with exit code {code}; its own output says why")
        codes.append(code)

    held = HeldScreen()
    try:
        with contextlib.redirect_stderr(held), held_to_the_list():
            compose()
    except SystemExit as exit_:
        if not codes:
            return _code_without_call(line, exit_, held)
    except (HydraException, OmegaConfBaseException) as error:  # which Hydra does not report, as those of its folders
        held.write(f"{error}\n")
        return _refuse_as_hydra(line, error, held)
    finally:
        held.release()
    return max(codes, default=0)


class CommandLine:
    """The arguments of a verb, and what is wrong with them."""

    def __init__(self, verb: str, arguments: Sequence[str], config_name: str) -> None:
        self._verb = verb
        self.arguments = arguments
        self._config_name = config_name

    def problems(self) -> list[str]:
        """Errors that Hydra would accept, or report without a remedy, and then all others, too."""
        if renamed := renamed_on_command_line(overrides_and_flags(self.arguments)[0]):
            return renamed
        world_size = os.environ.get("WORLD_SIZE", "")  # no number is reported later
        ranks = int(world_size) if world_size.isdecimal() else 1
        if is_sweep(self.arguments) and (problem := sweep_problem(self._verb, self.arguments, ranks)):
            return [problem]
        if problems := variable_problems(self.arguments) or secrets_of_files(self.arguments, self._compose):
            return problems
        return self.with_the_others(wrong) if (wrong := wrong_before_hydra(self.arguments, self.keys)) else []

    def remedies(self, error: BaseException) -> list[str]:
        """In place of Hydra's error, and all others; empty if Hydra's message is enough."""
        found = remedy(f"{error}\n{error.__cause__ or ''}", self.keys, self.arguments, Path(conf_dir()))
        return self.with_the_others([found]) if found else []

    def with_the_others(self, found: Sequence[Wrong]) -> list[str]:
        """The errors that were found and those of all other arguments."""
        return with_the_others(
            found, self.arguments, compose=self._compose, keys=self.keys, config_name=self._config_name
        )

    def _compose(self, arguments: Sequence[str]) -> DictConfig:
        """Compose as Hydra does with --config-path FOLDER, --config-name NAME and --config-dir MORE."""
        files = files_of(arguments)
        more, folder = files.get("more"), files.get("folder")
        searched = [f"hydra.searchpath=['file://{os.path.abspath(more)}']"] if more else []
        first = os.path.abspath(folder) if folder else conf_dir()
        with held_to_the_list(), initialize_config_dir(first, version_base="1.3"):
            overrides, _ = overrides_and_flags(arguments)
            return compose(files.get("name") or self._config_name, overrides=[*overrides, *searched])

    def help(self) -> int:
        """Print the page of the verb, or what is wrong with the settings beside --help; returns the exit code."""
        from largebatch.cli.pages.layout import page_width
        from largebatch.cli.pages.verb_page import verb_page

        given = [one for one in self.arguments if one not in HELP]
        overrides, _ = overrides_and_flags(given)
        try:
            if overrides:
                self._compose(given)
        except (HydraException, OmegaConfBaseException) as error:
            return _refuse_as_hydra(self, error, HeldScreen())
        print(verb_page(self._config_name, overrides, self._catalogue(), page_width()))
        return EXIT_DONE

    def _catalogue(self) -> Catalogue:
        more = files_of(self.arguments).get("more")
        return Catalogue(tuple(map(Path, [*([more] if more else []), conf_dir()])))

    def keys(self) -> list[str]:
        """The dotted names of the config with the choices that exist, sections included."""
        catalogue = self._catalogue()
        chosen = [one for one in self.arguments if not one.endswith("=null")]
        settings = catalogue.settings(self._config_name, typed_choices(chosen, catalogue))
        braces = {key: yaml.safe_load(one.value) for key, one in settings.items() if one.value.startswith("{")}
        return [*settings, *(inner for key, value in braces.items() for inner in keys_of(value, f"{key}."))]


def _refuse_as_hydra(line: CommandLine, error: BaseException | None, held: HeldScreen) -> int:
    """Replace Hydra's message: its advice for an unknown key, a plus, would lead to the next error."""
    if isinstance(error, yaml.YAMLError):
        held.drop()
        return refuse(
            f"a config file is not valid YAML: {' '.join(str(error).split())}. Quote texts that contain : ? * & % "
            "{ } [ ], and indent with blanks."
        )
    if isinstance(error, (NotListedError, OmegaConfBaseException)):
        held.drop()
        return refuse(str(error).partition("\n    full_key: ")[0])
    if isinstance(error, HydraException) and (problems := line.remedies(error)):
        held.drop()
        return refuse(as_one(problems), problems)
    return EXIT_WRONG_INPUT


class _FailedJobError(CompactHydraException):
    """A job of a sweep failed in another process. Hydra prints only the message, in the parent process."""


def _code_without_call(line: CommandLine, exit_: SystemExit, held: HeldScreen) -> int:
    """The exit code if Hydra ended before the call: --cfg, bad overrides, or a failed job in another process."""
    if isinstance(exit_.__context__, _FailedJobError) and is_sweep(line.arguments):
        return EXIT_FAILED
    return _refuse_as_hydra(line, exit_.__context__, held) if exit_.code else 0
