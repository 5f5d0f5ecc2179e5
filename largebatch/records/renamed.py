"""Old names and their present ones: the one table for configs, checkpoints, records, verbs and metrics.

An old name in a config or on a command line is refused with the new one (`renamed_in_config`,
`renamed_on_command_line`): two names for one thing would make two runs look different. Checkpoints and run folders of
earlier versions are read through the same table (`with_new_names`, `new_metric`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from largebatch.records.flat_config import flat

# Dotted key of the config -> its new name; a section takes all keys below it along.
KEYS = {
    "observers.ranks.compare_every": "observers.replicas.every",
    "observers.ranks.slow_ratio": "observers.stragglers.ratio",
    "observers.ranks.recompute_every": "observers.recompute.every",
    "launcher.join_timeout_s": "launcher.rendezvous_timeout_s",
    "launcher.timeout_s": "launcher.collective_timeout_s",
    "chapter": "textbook",
}
# Key -> (regular expression of a part of its value, the present text).
_CHAPTER = (
    r"(?<![\w./-])chapter/(?=(?:accumulation|convergence|gd_variants|gradient_variance|lars|learning_rate|linear_scaling|"
    r"noise_and_minima|warmup)\b)"
)
VALUES = {"batch_norm": (r"\bghost\b", "per_micro_batch"), "experiment": (_CHAPTER, "textbook/")}
# Our own classes, wherever a config names one.
TARGETS = {
    "largebatch.coupled_losses.InfoNCE": "largebatch.losses.InfoNCE",
    "largebatch.verification.planted.OddNet": "largebatch.experiments.verify.planted.OddNet",
}
# Removed key or section -> the remedy.
DROPPED = {
    "observers.ranks": "Its keys are observers.replicas.every, observers.stragglers.ratio and "
    "observers.recompute.every now.",
    "observers.variance": "The 1/B law is no longer measured while training. Measure it on the trained weights: "
    "`largebatch measure variance`; while training, observers.noise_scale.every=10 follows the gradient noise.",
}
VERBS = {"chapter": "textbook", "ledger": "diff"}
# Regular expression of a key of metrics.jsonl -> its new name.
_METRICS = (
    ("ranks/slowest_rank", "stragglers/slowest_rank"),
    ("ranks/slowest_ratio", "stragglers/ratio"),
    ("communication/skew_s", "communication/straggler_wait_s"),
    (r"noise_scale/(.+/)?value", r"noise_scale/\1b_simple"),
    (r"noise_scale/(.+/)?(low|high)", r"noise_scale/\1ci_\2"),
)
# What a text refers to: ${key}, or ${oc.select:key,default}.
_REFERENCE = re.compile(r"\$\{(?:oc\.(?:select|dict\.keys|dict\.values):)?\s*([\w.]+)")
# Finds an old metric in the bytes of a line.
OLD_METRIC = re.compile(rb'"(?:ranks/slowest_\w+|communication/skew_s|noise_scale/(?:[^"]+/)?(?:value|low|high))"')


def renamed_in_config(config: Mapping[str, Any]) -> list[str]:
    """A sentence with the new name for each old name in a composed config.

    Args:
        config: nested, interpolations as they are written or resolved.

    >>> renamed_in_config({"seed": 1})
    []
    """
    values = flat(config)
    found = [
        problem
        for key, value in values.items()
        if (
            problem := _old_key(key, f"{key}={value}", "", f"={value}") or _old_value(key, str(value), f"{key}={value}")
        )
    ]
    found += [problem for key, value in values.items() for problem in _old_references(value, f"{key}={value}")]
    return list(dict.fromkeys(found))


def renamed_on_command_line(arguments: Sequence[str]) -> list[str]:
    """The same for arguments `KEY=VALUE`, of a sweep as well."""
    found = []
    for argument in arguments:
        sign = argument[: len(argument) - len(argument.lstrip("+~"))]
        key, equals, value = argument[len(sign) :].partition("=")
        if problem := _old_key(key, argument, sign, equals + value) or _old_value(key, value, argument):
            found.append(problem)
        found += _old_references(value, argument)
    return found


def new_key(key: str) -> str:
    """The present name of a dotted key of the config."""
    for old, new in KEYS.items():
        if _is_at(key, old):
            return new + key.removeprefix(old)
    return key


def new_value(key: str, value: Any) -> Any:
    """The present name of a key's value."""
    pattern, new = VALUES.get(key, ("", ""))
    return re.sub(pattern, new, value) if pattern and isinstance(value, str) else value


def renamed_choice(path: str) -> str:
    """The present `GROUP=CHOICE` of a file of conf/ by its former path; empty if it has no former path.

    >>> renamed_choice("experiment/chapter/lars"), renamed_choice("experiment/quickstart")
    ('experiment=textbook/lars', '')
    """
    for group in VALUES:
        choice = path.removeprefix(f"{group}/")
        if choice != path and (new := new_value(group, choice)) != choice:
            return f"{group}={new}"
    return ""


@functools.cache
def new_metric(name: str) -> str:
    """The present name of a key of metrics.jsonl."""
    for pattern, new in _METRICS:
        if found := re.fullmatch(pattern, name):
            return found.expand(new)
    return name


def with_new_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """An old config, or the identity of an old run, in present names and without removed keys.

    >>> with_new_names({"batch_norm": "ghost", "observers": {"ranks": {"slow_ratio": 2}, "variance": {"every": 1}}})
    {'batch_norm': 'per_micro_batch', 'observers': {'stragglers': {'ratio': 2}}}
    """
    renamed: dict[str, Any] = _with_new_targets(dict(config))
    for old, new in KEYS.items():
        *sections, last = old.split(".")
        if last in (place := _section(renamed, sections)):
            *new_sections, new_last = new.split(".")
            target = renamed
            for name in new_sections:
                target = target.setdefault(name, {})
            target.setdefault(new_last, place.pop(last))
    for key in DROPPED:
        *sections, last = key.split(".")
        _section(renamed, sections).pop(last, None)
    for key in VALUES:
        *sections, last = key.split(".")
        if last in (place := _section(renamed, sections)):
            place[last] = new_value(key, place[last])
    return renamed


def _old_references(value: Any, written: str) -> list[str]:
    """Of the keys that a text reads: ${oc.select:KEY,DEFAULT} would give the default without a word."""
    keys = _REFERENCE.findall(value) if isinstance(value, str) else []
    return [problem for key in keys if (problem := _old_key(key, written, "${", "}"))]


def _old_key(key: str, written: str, before: str, behind: str) -> str:
    """A sentence if a key has another name now; what to write is the new one between `before` and `behind`."""
    if (new := new_key(key)) != key:
        return f"{written}: {key} is called {new} now. Write {before}{new}{behind}."
    remedies = [remedy for old, remedy in DROPPED.items() if _is_at(key, old)]
    return f"{written}: there is no such key. {remedies[0]}" if remedies else ""


def _old_value(key: str, value: str, written: str) -> str:
    if (new := new_value(key, value)) == value:
        return ""
    return f"{written}: is called {new} now. Write {key}={new}."


def _is_at(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _section(config: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    node: Any = config
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _with_new_targets(node: Any) -> Any:
    """A copy in which each `_target_` of ours has its present name."""
    if isinstance(node, dict):
        return {
            key: TARGETS.get(str(value), value) if key == "_target_" else _with_new_targets(value)
            for key, value in node.items()
        }
    return [_with_new_targets(one) for one in node] if isinstance(node, list) else node
