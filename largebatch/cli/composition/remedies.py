"""Replaces Hydra's error messages by ones with a remedy: the closest valid name, and what to type instead."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from largebatch.cli.catalogue.composed import Catalogue
from largebatch.cli.composition.grammar import parsed
from largebatch.cli.composition.wrong import Wrong
from largebatch.records.renamed import new_key, renamed_choice, renamed_on_command_line
from largebatch.run.config.did_you_mean import did_you_mean, meant_by_key
from largebatch.run.config.other_tools import near_choice, same_choice

_FILE = re.compile(r"In '(\S+)': ")
_KEY = re.compile(r"Could not (?:override|delete from config\.) '(\S+?)'")
_CHOICE = re.compile(r"Could not (?:find|load) '(\S+)/([^\s/]*)'")
_CONFIG = re.compile(r"(?:Could not load|Cannot find primary config) '([^\s/']+?)(?:\.yaml)?'")
_OPTION = re.compile(r"^\t(\S+)$", re.MULTILINE)
_SEARCHED = re.compile(r"path=file://(\S.*)$", re.MULTILINE)
_SEVERAL = re.compile(r"Multiple values for (\S+)\. .*'override \S+ (\S+)'")
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


def remedy(message: str, keys: Keys, arguments: Sequence[str] = (), groups: Path = Path()) -> Wrong | None:
    """The error to print in place of Hydra's; None if Hydra's own is enough.

    Args:
        message: Hydra's message.
        keys: returns the keys of the config, such as `batch.total`; called only when needed.
        arguments: command line after the verb.
        groups: conf/, whose folders are the groups.

    >>> remedy("Could not override 'batch.totl'.", lambda: ["batch.total", "seed"], ["batch.totl=64"]).text
    "batch.totl=64: there is no such key. Did you mean 'batch.total'?"
    >>> remedy("Multiple values for debug. To override a value use 'override debug: tiny'", list).text
    'debug has a choice already: drop the plus of +debug=tiny.'
    """
    if choice := _CHOICE.search(message):
        return _unknown_choice(message, choice[1], choice[2], arguments)
    if (config := _CONFIG.search(message)) and (new := new_key(config[1])) != config[1]:
        return Wrong((), f"the config {config[1]}.yaml is called {new}.yaml now. Write {new}.")
    if key := _KEY.search(message):
        return _unknown_key(message, key[1], keys, arguments, groups)
    if several := _SEVERAL.search(message):
        typed = f"+{several[1]}={several[2]}"
        text = f"{several[1]} has a choice already: drop the plus of {typed}."
        return Wrong((typed,) if typed in arguments else (), text)
    return None


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


def numbers_for_groups(arguments: Sequence[str], groups: Path, keys: Keys) -> list[Wrong]:
    """The errors of `batch=64`, which gives a traceback in Hydra.

    Args:
        arguments: overrides that can be parsed.
        groups: conf/, whose folders are the groups.
        keys: as for `remedy`.
    """
    found = []
    for argument in arguments:
        group, _, value = argument.partition("=")
        if group and (groups / group).is_dir() and not _is_choice(argument):
            names = sorted(path.stem for path in (groups / group).glob("*.yaml"))
            example = next((f", such as {key}" for key in keys() if key.startswith(f"{group}.")), "")
            instead = f"Set one of them{example}" if example else "Without the argument there is none"
            instead = f"Did you mean {group}={meant}?" if (meant := same_choice(value)) in names else f"{instead}."
            choices = ", ".join(names)
            text = f"{argument}: {group} is a group of settings, chosen by name ({choices}). {instead}"
            found.append(Wrong((argument,), text))
    return found


def keys_of(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of all values of a nested dict, sections included."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")


def _unknown_choice(message: str, group: str, given: str, arguments: Sequence[str]) -> Wrong:
    typed: tuple[str, ...] = ()
    for argument in arguments:  # the group of `experiment/study/digits` is `experiment`, if it was typed like this
        name, _, choice = argument.lstrip("+").partition("=")
        if choice and f"{group}/{given}" == f"{name}/{choice}":
            group, given, place, typed = name, choice, "", (argument,)
            break
    else:
        place = _place(message)
    if new := renamed_choice(f"{group}/{given}"):  # in a file's list of defaults
        return Wrong(typed, f"{place}{group}/{given}: is called {new.replace('=', '/')} now. Write {new}.")
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
    near = f" {found}" if (found := near_choice(group, given)) else ""
    return Wrong(
        typed, f"{place}{group}={given}: there is no such choice.{near or meant}{known}{'' if near else others}"
    )


def _unknown_key(message: str, key: str, keys: Keys, arguments: Sequence[str], groups: Path) -> Wrong:
    argument = next((one for one in arguments if one.partition("=")[0].lstrip("~") == key), key)
    typed = (argument,) if argument in arguments else ()
    if renamed := renamed_on_command_line([argument]):
        return Wrong(typed, f"{_place(message)}{renamed[0]}")
    value, group = argument.partition("=")[2], key.partition(".")[0]
    if argument.startswith("~") and key in keys():  # which Hydra takes for absent
        return Wrong(
            typed,
            f"{_place(message)}{argument}: is null, and Hydra removes no key that is null. Write what is to be left in "
            f"FOLDER/{group}/NAME.yaml, and give --config-dir FOLDER {group}=NAME.",
        )
    names = list(dict.fromkeys([*keys(), *sorted(path.name for path in groups.glob("[!_]*/"))]))
    meant = _bringer_of_group(key, groups) or _bringers_of_key(key, groups) or meant_by_key(key, names, value)
    section = key.rpartition(".")[0]
    siblings = [one.rpartition(".")[2] for one in names if one.rpartition(".")[0] == section]
    known = f"Known here: {', '.join(siblings)}." if siblings else f"There is no section {section} either."
    if "_target_" in siblings and "=" in argument:
        known += f" Another argument of the class takes a plus: +{argument}."
    search = f" `largebatch help {key.rpartition('.')[2]}` searches all comments."
    return Wrong(typed, f"{_place(message)}{argument}: there is no such key. {meant or known + search}")


def _bringers_of_key(key: str, groups: Path) -> str:
    """The choices that have a key: `optimizer.betas` needs optimizer=adamw, lamb or muon."""
    if "." not in key or not groups.name:
        return ""
    found = list(Catalogue((groups,)).bringers(key))
    others = [one for one in found if not one.startswith(("experiment=", "debug="))]
    return f"It comes with {', '.join(others)}." if others else ""


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


def _is_choice(argument: str) -> bool:
    """Whether Hydra can look the value up or merge it. Arguments that it cannot parse are reported elsewhere."""
    override = parsed(argument)
    return override is None or override.is_sweep_override() or isinstance(override.value(), (str, list, dict))
