"""Refuses secrets on a command line before Hydra or the launcher can print or store them."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

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


def secrets_of_files(arguments: Sequence[str], composed: Callable[..., DictConfig]) -> list[str]:
    """Errors for secrets in the user's own files: `--cfg` would print them, a sweep would write them to multirun.yaml.

    Args:
        arguments: command line after the verb.
        composed: composes the config of overrides and of the flags that name files: `folder`, `name`, `more`.
    """
    if not any(argument.startswith(("--config-", "-cd", "-cp", "-cn")) for argument in arguments):
        return []
    from largebatch.run.config.reading import ConfigError, require_no_secrets  # imports torch

    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            given, _ = get_args_parser().parse_known_intermixed_args(list(arguments))
            parsed = OverridesParser.create().parse_overrides(given.overrides)
            overrides = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
            files = {"folder": given.config_path, "name": given.config_name, "more": given.config_dir}
            require_no_secrets(composed(overrides, **files))
    except ConfigError as error:
        return error.errors
    except (SystemExit, Exception):  # Hydra reports it
        return []
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
