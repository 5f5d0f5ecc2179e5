"""Refuses secrets on a command line before Hydra or the launcher can print or store them."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from largebatch.cli.composition.flags import files_of, overrides_and_flags
from largebatch.cli.composition.listed_hydra import NotListedError
from largebatch.records.credentials import hide_variables, is_secret_variable, redacted, variables_in
from largebatch.records.durable_files import write_whole
from largebatch.run.config.environment import NAMING, unset_variables


def variable_problems(arguments: Sequence[str]) -> list[str]:
    """Errors for variables that are not set, and for secrets that would name a folder or a job.

    From now on all output, Hydra's too, shows the name of every other variable in place of its value.
    """
    hide_variables(name for one in arguments if not _key(one).startswith(NAMING) for name in variables_in(one))
    of_hydra = [one for one in arguments if one.lstrip("+").startswith("hydra.") and "hydra.job.env_" not in one]
    named = [one for one in of_hydra if _reads_a_secret(one)]
    if any("override_dirname" in one for one in of_hydra):
        excluded = " ".join(one for one in of_hydra if "exclude_keys" in one)
        named += [one for one in arguments if _key(one) not in excluded and _reads_a_secret(one)]
    return unset_variables(arguments) + [
        f"{_key(one)}: its variable looks like a secret, and Hydra would name a folder or a job after it. "
        "Leave it out of hydra.*, or list the key in hydra.job.config.override_dirname.exclude_keys."
        for one in dict.fromkeys(named)
    ]


def secrets_of_files(arguments: Sequence[str], composed: Callable[[Sequence[str]], DictConfig]) -> list[str]:
    """Errors for secrets in the user's own files: `--cfg` would print them, a sweep would write them to multirun.yaml.

    Args:
        arguments: command line after the verb.
        composed: composes the config of a command line.
    """
    if not any(files_of(arguments).values()):
        return []
    from largebatch.run.config.reading import ConfigError, require_no_secrets

    overrides, _ = overrides_and_flags(arguments)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            parsed = OverridesParser.create().parse_overrides(overrides)
            swept = {str(one.input_line) for one in parsed if one.is_sweep_override()}
            require_no_secrets(composed([one for one in arguments if one not in swept]))
    except ConfigError as error:
        return error.errors
    except (HydraException, OmegaConfBaseException, NotListedError, YAMLError, OSError, UnicodeError):
        return []  # Hydra reports it
    return []


def error_handler() -> Any:
    """The error handler of torch, but without secrets: the launcher prints the exception of a failed rank."""
    from torch.distributed.elastic.multiprocessing.errors.error_handler import ErrorHandler

    class Handler(ErrorHandler):
        def record_exception(self, e: BaseException) -> None:
            super().record_exception(e)
            if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
                write_whole(path, redacted(Path(path).read_text(encoding="utf-8")))

    return Handler()


def _reads_a_secret(argument: str) -> bool:
    return any(map(is_secret_variable, variables_in(argument)))


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")
