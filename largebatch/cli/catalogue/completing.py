"""The words that may stand where the cursor is: verbs, flags, keys, groups, choices, values. Without Hydra."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from largebatch import conf_dir
from largebatch.cli.catalogue.composed import Catalogue, typed_choices
from largebatch.cli.catalogue.files import Setting
from largebatch.cli.verbs import VERBS

_FLAGS = {
    "--help": "every key with its value and meaning",
    "--config-dir": "a folder with choices of your own",
    "--multirun": "one run after another",
    "--cfg": "print the composed config",
    "--info": "print the files that it is made of",
}
_PATHS = {"dir", "root", "path", "resume", "weights", "checkpoint", "file"}  # last words of keys that name files
_BESIDE_PATHS = {"resume": ("auto", "none")}
_OF_FILES = ("compare", "report", "diff", "checkpoint", "launch")
# WHAT of the verbs whose line in VERBS shows an example in place of the list.
_SUBJECTS = {
    "launch": ("torchrun", "accelerate", "multinode", "slurm", "show", "folder"),
    "checkpoint": ("verify", "export"),
}
_SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Word:
    """One possible completion.

    Attributes:
        text: of the whole argument; it goes on if it ends in = or a dot.
        about: its description.
    """

    text: str
    about: str = ""


class PathsError(Exception):
    """The argument is a path, or its value is: the shell knows them."""


def completions(words: Sequence[str], current: str) -> list[Word]:
    """What may stand in place of `current`, behind `words`, the arguments before it.

    Raises:
        PathsError: if it is a path.

    >>> [word.text for word in completions([], "pl")], [word.text for word in completions(["train"], "optimizer=l")]
    (['plan'], ['optimizer=lamb', 'optimizer=lars'])
    >>> [word.text for word in completions(["train"], "batch.m")]
    ['batch.max_micro=', 'batch.micro=']
    """
    return [word for word in _candidates(words, current) if word.text.startswith(current)]


def _candidates(words: Sequence[str], current: str) -> Iterator[Word]:
    if not words:
        yield from (Word(name, about) for name, about in VERBS.items())
        yield from (Word("--help"), Word("--version"))
        return
    verb, *others = words
    if others and others[-1] in ("--config-dir", "-cd"):
        raise PathsError
    if others and others[-1] in ("--cfg", "-c"):
        yield from map(Word, ("job", "all", "hydra"))
        return
    if verb == "completion":
        yield from map(Word, _SHELLS)
    elif verb == "help":
        yield from (Word(name, about) for name, about in VERBS.items())
        catalogue = Catalogue((Path(conf_dir()),))
        yield from (Word(group) for group in catalogue.groups())
        yield from (Word(key, one.comment) for key, one in catalogue.settings("train", {}).items())
    elif verb in VERBS and (subjects := _subjects(verb)) and not others:
        yield from subjects
    elif verb in _OF_FILES or (verb, *others[:1]) == ("textbook", "page"):
        raise PathsError
    elif verb in VERBS:
        yield from _of_config(verb, others, current)


def _subjects(verb: str) -> list[Word]:
    """WHAT of `measure WHAT`, as the list of verbs names them, and the experiments of the textbook."""
    found = re.search(rf"`{verb} ([\w-]+(?:\|[\w-]+)+)`", VERBS[verb])
    names = found[1].split("|") if found else list(_SUBJECTS.get(verb, ()))
    if "NAME" in names:
        experiments = Catalogue((Path(conf_dir()),)).choices(f"experiment/{verb}")
        others = [Word(name) for name in names if name != "NAME"]
        return [*(Word(name, about) for name, about in experiments.items()), *others]
    return list(map(Word, names))


def _of_config(verb: str, others: Sequence[str], current: str) -> Iterator[Word]:
    more = [Path(folder) for flag, folder in itertools.pairwise(others) if flag in ("--config-dir", "-cd")]
    catalogue = Catalogue((*more, Path(conf_dir())))
    name = verb.replace("-", "_")
    name = name if (Path(conf_dir()) / f"{name}.yaml").is_file() else "train"
    settings = catalogue.settings(name, typed_choices(others, catalogue))
    sign = current[: len(current) - len(current.lstrip("+~"))]
    key, equals, value = current[len(sign) :].partition("=")
    if equals:
        yield from (Word(f"{sign}{key}={one.text}", one.about) for one in _values(key, value, settings, catalogue))
        return
    if current.startswith("-") or not current:
        yield from (Word(flag, about) for flag, about in _FLAGS.items())
    groups = [] if "." in key else catalogue.groups()
    yield from (Word(f"{sign}{group}=", f"one of {', '.join(catalogue.choices(group))}") for group in groups)
    yield from (Word(f"{sign}{one.text}", one.about) for one in _next_parts(key, settings))


def _next_parts(typed: str, settings: dict[str, Setting]) -> Iterator[Word]:
    """Keys and sections of the section that is typed: not all keys at once."""
    section = typed.rpartition(".")[0]
    start = f"{section}." if section else ""
    seen = set()
    for key, one in settings.items():
        if not key.startswith(start):
            continue
        part, dot, _ = key[len(start) :].partition(".")
        name = f"{start}{part}"
        is_section = bool(dot) or one.is_section
        if name not in seen:
            seen.add(name)
            comment = settings[name].comment if name in settings else ""
            about = comment if is_section else f"{one.value}  {comment}".strip()
            yield Word(f"{name}{'.' if is_section else '='}", about)


def _values(key: str, value: str, settings: dict[str, Setting], catalogue: Catalogue) -> Iterator[Word]:
    if key in catalogue.groups():
        yield from (Word(name, about) for name, about in catalogue.choices(key).items())
        return
    if key.rpartition(".")[2] in _PATHS:
        words = [word for word in _BESIDE_PATHS.get(key, ()) if word.startswith(value)]
        if not words:
            raise PathsError
        yield from map(Word, words)
    elif key in settings:
        yield from map(Word, _named_values(key, settings[key]))


def _named_values(key: str, setting: Setting) -> Sequence[str]:
    if setting.value in ("true", "false"):
        return ("true", "false")
    from largebatch.run.config.described import names_of  # imports pydantic, which takes longer than all else
    from largebatch.run.config.schema import TrainConfig

    return names_of(key, TrainConfig) or (setting.value,)
