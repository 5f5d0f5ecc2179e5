"""Replaces Hydra's error messages by ones with a remedy: the closest valid name, and what to type instead."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from largebatch.records.renamed import new_key, renamed_choice, renamed_on_command_line
from largebatch.run.config.did_you_mean import did_you_mean, meant_by_key

_FILE = re.compile(r"In '(\S+)': ")
_KEY = re.compile(r"Could not (?:override|delete from config\.) '(\S+?)'")
_CHOICE = re.compile(r"Could not (?:find|load) '(\S+)/([^\s/]*)'")
_CONFIG = re.compile(r"(?:Could not load|Cannot find primary config) '([^\s/']+?)(?:\.yaml)?'")
_OPTION = re.compile(r"^\t(\S+)$", re.MULTILINE)
_SEARCHED = re.compile(r"path=file://(\S.*)$", re.MULTILINE)
_FLAG = re.compile(r"--[a-z-]+")
_SEVERAL = re.compile(r"Multiple values for (\S+)\. .*'override \S+ (\S+)'")
_SYNTAX = re.compile(r"no viable alternative|mismatched input|extraneous input|missing \w+ at|LexerNoViableAlt")
_PLAIN_TEXT = re.compile(
    r"""^([^=]+=)(?!\s)(?=.*[^\x00-\x7f])([^=,\[\]{}()"'\\$]+)(?<!\s)$"""
)  # the only texts beyond ASCII that are safe to quote
QUOTING = (
    "An argument is KEY=VALUE. The shell interprets quotes, brackets, braces and blanks: put the whole "
    "argument into single quotes, 'KEY=[a,b]'. Put a text with these signs, or with letters beyond ASCII, into double "
    "quotes inside them, 'KEY=\"a=b\"'."
)
_CLASS = (
    " For a class of your own write FOLDER/{group}/NAME.yaml with `_target_: package.Class`, and give "
    "--config-dir FOLDER {group}=NAME."
)
_OWN = {
    "model": _CLASS,
    "optimizer": _CLASS,
    "data": " For a data set of your own write FOLDER/data/NAME.yaml with name, train and validation, and give "
    "--config-dir FOLDER data=NAME.",
    "loss": " For any loss of torch give loss=module loss._target_=torch.nn.NAME.",
}  # group -> the way to something that is no choice
_LAUNCHERS = " joblib and submitit come with `pip install 'largebatch[sweep]'`."

Keys = Callable[[], Sequence[str]]


def remedy(message: str, keys: Keys, arguments: Sequence[str] = (), groups: Path = Path()) -> str:
    """The message to print in place of Hydra's; empty if Hydra's own is enough.

    Args:
        message: Hydra's message.
        keys: returns the keys of the config, such as `batch.total`; called only when needed.
        arguments: command line after the verb.
        groups: conf/, whose folders are the groups.

    >>> remedy("Could not override 'batch.totl'.", lambda: ["batch.total", "seed"], ["batch.totl=64"])
    "batch.totl=64: there is no such key. Did you mean 'batch.total'?"
    >>> remedy("Multiple values for debug. To override a value use 'override debug: tiny'", list)
    'debug has a choice already: drop the plus of +debug=tiny.'
    """
    if choice := _CHOICE.search(message):
        return _unknown_choice(message, choice[1], choice[2], arguments)
    if (config := _CONFIG.search(message)) and (new := new_key(config[1])) != config[1]:
        return f"the config {config[1]}.yaml is called {new}.yaml now. Write {new}."
    if key := _KEY.search(message):
        return _unknown_key(message, key[1], keys, arguments, groups)
    if several := _SEVERAL.search(message):
        return f"{several[1]} has a choice already: drop the plus of +{several[1]}={several[2]}."
    return ""


def is_syntax(message: str) -> bool:
    """Whether Hydra could not parse an argument. Its message shows where; `QUOTING` is the remedy."""
    return _SYNTAX.search(message) is not None


def overrides_and_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into overrides and flags, which a user may give in any order; Hydra's parser needs one.

    Hydra's parser knows only letters of ASCII, so a plain text with others gets the double quotes that it needs.

    >>> overrides_and_flags(["run.dir=läufe/a", "--cfg", "job"])
    (['run.dir="läufe/a"'], ['--cfg', 'job'])
    """
    overrides, _ = _parsed(arguments)
    flags = list(arguments)
    for override in overrides:
        flags.remove(override)
    return [_PLAIN_TEXT.sub(r'\1"\2"', override) for override in overrides], flags


def sweep_problem(verb: str, arguments: Sequence[str], world_size: int) -> str:
    """The error of a sweep, found before its values are read; empty if there is none."""
    if world_size > 1:
        return (
            "--multirun inside a launcher: every rank would run the whole sweep. Start one job per value instead:\n"
            f"  for value in ...; do torchrun ... -m largebatch {verb} KEY=$value; done"
        )
    given = [one for one in arguments if one.startswith("logger.wandb.id=") and "," not in one and "null" not in one]
    given += ["WANDB_RUN_ID"] if os.environ.get("WANDB_RUN_ID") else []
    return f"{given[0]}: W&B would merge all runs of the sweep into one. Leave it out." if given else ""


def flag_problem(arguments: Sequence[str], keys: Keys) -> str:
    """The error of `--batch-size 64`, or of `--batch.total=64` as `wandb agent` passes it; empty if there is none."""
    if any(argument.partition("=")[0] == "--config" for argument in arguments):
        return (
            "--config: there is no such flag. Save your settings as FOLDER/experiment/NAME.yaml, with the first line "
            "`# @package _global_`, and give --config-dir FOLDER experiment=NAME."
        )
    if any(argument.startswith("--exp") for argument in arguments):
        return (
            "--experimental-rerun: unpickles a file, which can run any code. Repeat the overrides of that run; its "
            "overrides.txt lists them."
        )
    return "\n".join(_unknown_flag(flag, arguments, keys()) for flag in _parsed(arguments)[1])


def number_for_a_group(arguments: Sequence[str], groups: Path, keys: Keys) -> str:
    """The error of `batch=64`, which gives a traceback in Hydra; empty if there is none.

    Args:
        arguments: command line after the verb.
        groups: conf/, whose folders are the groups.
        keys: as for `remedy`.
    """
    for argument in arguments:
        group = argument.partition("=")[0]
        if group and (groups / group).is_dir() and not _is_choice(argument):
            choices = ", ".join(sorted(path.stem for path in (groups / group).glob("*.yaml")))
            example = next((f", such as {key}" for key in keys() if key.startswith(f"{group}.")), "")
            instead = f"Set one of them{example}" if example else "Without the argument there is none"
            return f"{argument}: {group} is a group of settings, chosen by name ({choices}). {instead}."
    return ""


def keys_of(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of all values of a nested dict, sections included."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")


def _parsed(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides, and flags unknown to Hydra."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            known, unknown = get_args_parser().parse_known_intermixed_args(list(arguments))
    except SystemExit:  # --version, or a flag that is wrong in another way: Hydra reports it
        return list(arguments), []
    return list(known.overrides), unknown


def _unknown_choice(message: str, group: str, given: str, arguments: Sequence[str]) -> str:
    for argument in arguments:  # the group of `experiment/study/digits` is `experiment`, if it was typed like this
        name, _, choice = argument.lstrip("+").partition("=")
        if choice and f"{group}/{given}" == f"{name}/{choice}":
            group, given, place = name, choice, ""
            break
    else:
        place = _place(message)
    if new := renamed_choice(f"{group}/{given}"):  # in a file's list of defaults
        return f"{place}{group}/{given}: is called {new.replace('=', '/')} now. Write {new}."
    folders = [Path(found) for found in _SEARCHED.findall(message)]
    options = {
        path.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders
        for path in (folder / group).rglob("*.yaml")
    } | set(_OPTION.findall(message.partition("Config search path")[0]))
    meant = did_you_mean(given, sorted(options)).replace("'", f"'{group}=", 1).replace(" or '", f" or '{group}=")
    where = f" in {' and '.join(map(str, folders))}" if len(folders) > 1 else ""
    known = f" There are{where}: {', '.join(sorted(options))}." if options else f" There are none{where}."
    others = _LAUNCHERS if group == "hydra/launcher" else "" if meant else _OWN.get(group, "").format(group=group)
    return f"{place}{group}={given}: there is no such choice.{meant}{known}{others}"


def _unknown_key(message: str, key: str, keys: Keys, arguments: Sequence[str], groups: Path) -> str:
    argument = next((one for one in arguments if one.partition("=")[0].lstrip("~") == key), key)
    if renamed := renamed_on_command_line([argument]):
        return f"{_place(message)}{renamed[0]}"
    value, group = argument.partition("=")[2], key.partition(".")[0]
    if argument.startswith("~") and key in keys():  # which Hydra takes for absent
        return (
            f"{_place(message)}{argument}: is null, and Hydra removes no key that is null. Write what is to be left in "
            f"FOLDER/{group}/NAME.yaml, and give --config-dir FOLDER {group}=NAME."
        )
    names = list(dict.fromkeys([*keys(), *sorted(path.name for path in groups.glob("[!_]*/"))]))
    meant = _bringer_of_group(key, groups) or meant_by_key(key, names, value)
    section = key.rpartition(".")[0]
    siblings = [one.rpartition(".")[2] for one in names if one.rpartition(".")[0] == section]
    known = f"Known here: {', '.join(siblings)}." if siblings else f"There is no section {section} either."
    return f"{_place(message)}{argument}: there is no such key. {meant or known}"


def _bringer_of_group(group: str, folder: Path) -> str:
    """The choice that adds a group: `lars=simclr` needs optimizer=lars."""
    for path in sorted(folder.glob("*/*.yaml")) if (folder / group).is_dir() else []:
        if f"- /{group}:" in path.read_text(encoding="utf-8"):
            return f"The group {group} comes with {path.parent.name}={path.stem}: add this choice."
    return ""


def _place(message: str) -> str:
    """The file with the error; empty if it was on the command line."""
    found = _FILE.search(message)
    return f"in {found[1]}.yaml: " if found and "/" in found[1] else ""


def _unknown_flag(flag: str, arguments: Sequence[str], keys: Sequence[str]) -> str:
    name, equals, value = flag.partition("=")
    if not equals:
        behind = arguments[list(arguments).index(flag) + 1 :][:1]
        value = behind[0] if behind and "=" not in behind[0] and not behind[0].startswith("--") else "VALUE"
    typed = f"{name}={value}" if equals else f"{name} {value}".removesuffix(" VALUE")
    key = name.lstrip("-")
    if key in keys:
        sweep = " In a W&B sweep, `command` has ${args_no_hyphens} in place of ${args}." if equals else ""
        return f"{typed}: settings have no dashes, write {key}={value}.{sweep}"
    if slip := did_you_mean(name, _FLAG.findall(get_args_parser().format_usage())):
        return f"{name}: there is no such flag.{slip}"
    meant = meant_by_key(key, keys, value)
    return f"{typed}: settings have no dashes, they are KEY=VALUE. {meant or f'There is no key {key} either.'}"


def _is_choice(argument: str) -> bool:
    """Whether Hydra can look the value up or merge it. Hydra itself reports arguments that it cannot parse."""
    try:
        value = OverridesParser.create().parse_override(argument)
    except HydraException:
        return True
    return value.is_sweep_override() or isinstance(value.value(), (str, list, dict))
