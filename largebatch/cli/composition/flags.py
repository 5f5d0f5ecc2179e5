"""Flags: Hydra's own, and settings that were typed as flags, `--batch-size 1024`."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from hydra._internal.utils import get_args_parser

from largebatch.cli.composition.grammar import is_value
from largebatch.cli.composition.wrong import Wrong
from largebatch.run.config.did_you_mean import did_you_mean, meant_by_key

HELP = ("--help", "-h")
_SWEEP = ("-m", "--multirun")
_OWN = {
    "--config": (
        "there is no such flag. Save your settings as FOLDER/experiment/NAME.yaml, with the first line "
        "`# @package _global_`, and give --config-dir FOLDER experiment=NAME."
    ),
    "--version": "it is a flag of largebatch, not of a verb. Write `largebatch --version`.",
    "--experimental-rerun": (
        "unpickles a file, which can run any code. Repeat the overrides of that run; its overrides.txt lists them."
    ),
    "--shell-completion": "`largebatch completion bash` prints the completion of all verbs; also zsh and fish.",
    "-sc": "`largebatch completion bash` prints the completion of all verbs; also zsh and fish.",
}
_PLAIN_TEXT = re.compile(
    r"""^([^=]+=)(?!\s)(?=.*[^\x00-\x7f])([^=,\[\]{}()"'\\$]+)(?<!\s)$"""
)  # the only texts beyond ASCII that are safe to quote

Keys = Callable[[], Sequence[str]]


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for several runs."""
    return any(argument in _SWEEP for argument in arguments)


def wrong_flags(arguments: Sequence[str], keys: Keys) -> list[Wrong]:
    """The errors of flags that Hydra has not, or that it is not to act on.

    Args:
        arguments: command line after the verb.
        keys: returns the keys of the config, such as `batch.total`; called only when needed.

    >>> [(one.arguments, one.text[:40]) for one in wrong_flags(["--lr", "0.1", "seed=1"], lambda: ["seed"])]
    [(('--lr', '0.1'), '--lr 0.1: settings have no dashes, they ')]
    """
    found, dashed = [], []
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if not re.match(r"--?[A-Za-z]", name) or (place and _takes_value(arguments[place - 1])):
            continue
        own = next((flag for flag in _OWN if name == flag or (flag.startswith(name) and name.startswith("--exp"))), "")
        if not own and _known(name):
            continue
        given: tuple[str, ...] = (argument,)
        if not equals and is_value(behind := "".join(arguments[place + 1 : place + 2])):
            given, value = (argument, behind), behind
        if not own and name.lstrip("-") in keys():
            dashed.append((given, f"{name.lstrip('-')}={value or 'VALUE'}"))
            continue
        text = f"{own}: {_OWN[own]}" if own else _unknown(name, value, " ".join(given), keys())
        found.append(Wrong(given, text))
    return [*found, *_without_dashes(dashed)]


def _without_dashes(dashed: Sequence[tuple[tuple[str, ...], str]]) -> list[Wrong]:
    """One error for all keys of ours that were typed like flags, as `wandb agent` passes them."""
    if not dashed:
        return []
    typed = tuple(one for given, _ in dashed for one in given)
    is_agent = any("=" in given[0] for given, _ in dashed)
    sweep = " In a W&B sweep, `command` has ${args_no_hyphens} in place of ${args}." if is_agent else ""
    written = " ".join(key for _, key in dashed)
    return [Wrong(typed, f"{' '.join(typed)}: settings have no dashes, write {written}.{sweep}")]


def overrides_and_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into overrides and flags, which a user may give in any order; Hydra's parser needs one.

    Hydra's parser knows only letters of ASCII, so a plain text with others gets the double quotes that it needs.

    >>> overrides_and_flags(["run.dir=läufe/a", "--cfg", "job"])
    (['run.dir="läufe/a"'], ['--cfg', 'job'])
    """
    overrides = list(arguments) if (known := _parsed(arguments)) is None else list(known.overrides)
    flags = list(arguments)
    for override in overrides:
        flags.remove(override)
    return [_PLAIN_TEXT.sub(r'\1"\2"', override) for override in overrides], flags


def files_of(arguments: Sequence[str]) -> dict[str, Any]:
    """What the flags --config-path, --config-name and --config-dir give, as `folder`, `name` and `more`."""
    given = _parsed(arguments)
    return {} if given is None else {"folder": given.config_path, "name": given.config_name, "more": given.config_dir}


@functools.cache
def _parser() -> Any:
    return get_args_parser()


def _parsed(arguments: Sequence[str]) -> Any:
    """What Hydra's parser makes of a command line; None if it refuses it."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return _parser().parse_known_intermixed_args(list(arguments))[0]
    except SystemExit:  # a flag without its value: Hydra reports it
        return None


def _known(name: str) -> bool:
    """Whether Hydra has the flag, or exactly one that begins so."""
    options = _parser()._option_string_actions
    return name in options or (name.startswith("--") and sum(one.startswith(name) for one in options) == 1)


def _takes_value(name: str) -> bool:
    action = _parser()._option_string_actions.get(name)
    return action is not None and action.nargs is None and "=" not in name


def _unknown(name: str, value: str, typed: str, keys: Sequence[str]) -> str:
    key = name.lstrip("-")
    options = [one for one in _parser()._option_string_actions if one.startswith("--")]
    if slip := did_you_mean(name, options):
        return f"{name}: there is no such flag.{slip}"
    meant = meant_by_key(key, keys, value)
    return f"{typed}: settings have no dashes, they are KEY=VALUE. {meant or f'There is no key {key} either.'}"
