"""All errors of a command line in one list: flags, grammar, names, values. No torch."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from largebatch import conf_dir
from largebatch.cli.composition.flags import Keys, is_sweep, overrides_and_flags, wrong_flags
from largebatch.cli.composition.grammar import unreadable
from largebatch.cli.composition.remedies import numbers_for_groups, remedy
from largebatch.cli.composition.wrong import Wrong, without

Compose = Callable[[Sequence[str]], DictConfig]


def wrong_before_hydra(arguments: Sequence[str], keys: Keys) -> list[Wrong]:
    """The errors that Hydra would report one at a time, without a remedy, or not at all.

    Args:
        arguments: command line after the verb.
        keys: returns the keys of the config; called only when needed.
    """
    found = wrong_flags(arguments, keys)
    overrides, _ = overrides_and_flags(without(arguments, found))
    found += unreadable(overrides, Path(conf_dir()), is_sweep=is_sweep(arguments))
    return found + numbers_for_groups(without(overrides, found), Path(conf_dir()), keys)


def with_the_others(
    found: Sequence[Wrong], arguments: Sequence[str], *, compose: Compose, keys: Keys, config_name: str
) -> list[str]:
    """The errors that were found and those of all other arguments: composes again and again without the wrong ones.

    Args:
        found: at least one.
        arguments: command line after the verb.
        compose: composes the config of arguments, flags included.
        keys: as for `wrong_before_hydra`.
        config_name: of the primary config.
    """
    wrong = list(found)
    while not is_sweep(arguments):
        left = without(arguments, wrong)
        if not left or len(left) == len(arguments):  # nothing else was typed, or the error is in a file
            break
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                values = wrong_values(compose(left), config_name)
        except (HydraException, OmegaConfBaseException) as error:
            other = remedy(f"{error}\n{error.__cause__ or ''}", keys, left, Path(conf_dir()))
            if other is None or not set(other.arguments) & set(left):
                break
            wrong.append(other)
        else:
            return [*(one.text for one in wrong), *values]
    return [one.text for one in wrong]


def wrong_values(config: DictConfig, config_name: str) -> list[str]:
    """Errors of types, ranges and names of a composed config; those of the verb's own section are left out."""
    from largebatch.run.config.reading import ConfigError, parse_config, require_no_secrets

    section = config_name if config_name != "train" else ""
    if section in config:
        config = config.copy()
        with open_dict(config):
            del config[section]
    try:
        require_no_secrets(config)
        parse_config(config)
    except ConfigError as error:
        return error.errors
    return []


def as_one(problems: Sequence[str]) -> str:
    r"""The text of one error, or a list of several.

    >>> as_one(["lr=1: there is no such key.", "seed=x: must be a whole number."])
    '2 errors on the command line:\n  - lr=1: there is no such key.\n  - seed=x: must be a whole number.'
    """
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} errors on the command line:", *(f"  - {one}" for one in problems)])
