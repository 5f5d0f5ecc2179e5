"""What makes a run this run, and what may differ from it in the run that goes on from its checkpoint."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.optim.learning_rates import DEPTH_PATTERN
from largebatch.records.checkpoint import Checkpoint, CheckpointError
from largebatch.records.checkpoint.reading import plain
from largebatch.records.credentials import variables_in
from largebatch.records.renamed import with_new_names
from largebatch.run.config.did_you_mean import did_you_mean
from largebatch.run.config.environment import comparable
from largebatch.run.config.schema import CHANGEABLE, is_changeable
from largebatch.run.config.targets import TargetError, find_target
from largebatch.run.prepare import Prepared
from largebatch.run.rank_agreement import code_of

# A run with another value of one of these is another run: a checkpoint of it must not be continued.
_IDENTITY = (
    "seed",
    "length",
    "clip_norm",
    "batch_norm",
    "scaling",
    "schedule",
    "optimizer",
    "parameters",
    "model",
    "loss",
)

_MOST_TOLD = 20  # changes
_HASHED_BYTES = 2**20  # of each file; the size stands for the rest

# What runs did before these keys existed.
_BEFORE: dict[str, Any] = {
    "batch_norm": "per_micro_batch",
    "guard": None,
    "ramp": {"milestones": [], "totals": [], "in_place_of_decay": False, "max_total": None},
}
_SCHEDULE_BEFORE = {"warmup_kind": "gradual"}
_PARAMETERS_BEFORE = {"lr_factor": None, "layer_decay": None, "layer_pattern": DEPTH_PATTERN}


def run_identity(prepared: Prepared) -> dict[str, Any]:
    """What makes a run this run, as plain values."""
    config, plain = prepared.config, comparable(prepared.public, prepared.config.model_dump())
    return {key: plain[key] for key in _IDENTITY} | {
        "global_batch_size": prepared.numbers.plan.global_batch_size,
        "ramp": plain["batch"]["ramp"],
        "guard": plain["guard"] if config.guard.acts else None,
        "precision": config.precision.compute,
        "content": prepared.content,
        "model_files": _files_named(config.model),
        "data": {"name": config.data.name, "num_samples": len(prepared.train), "augment": plain["data"]["augment"]},
        "code": code_of(prepared),
    }


@dataclass(frozen=True)
class Change:
    """A value of the config that a run goes on with, and what it was."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        if self.key == "content":
            return f"samples of the training set are others (their hash was {plain(self.was)}, now {self.now})"
        if self.is_code:
            name = self.key.removeprefix("code.")
            return f"the code of {plain(name)} is another one (its hash was {plain(self.was)}, now {self.now})"
        return f"{plain(self.key)} was {plain(self.was)}, now {self.now}"

    @property
    def is_code(self) -> bool:
        """Whether it is told and recorded, and needs no permission: most changes of code are none of a run."""
        return self.key.startswith("code.")

    @property
    def permission(self) -> str | None:
        """The value of resume_allow that would let it pass; None: nothing would."""
        section = self.key.partition(".")[0]
        if section in CHANGEABLE:
            return section
        # A model or a loss may have got another name, which a person alone can tell from another class. The state of
        # an optimizer belongs to the name of its class: it may have moved.
        is_other_class = self.key == "optimizer._target_" and _last_name(self.was) != _last_name(self.now)
        return self.key if is_changeable(self.key) and not is_other_class else None

    def is_allowed_by(self, entries: Sequence[str]) -> bool:
        """Whether one of these values of resume_allow names it, or a section that it belongs to."""
        return self.is_code or (self.permission is not None and any(_names(entry, self.key) for entry in entries))


def check_identity(checkpoint: Checkpoint, identity: dict[str, Any], *, allow: Sequence[str] = ()) -> list[Change]:
    """Refuse to continue a run as another one.

    Args:
        checkpoint: to continue from.
        identity: of the run that would go on.
        allow: what may differ: sections out of `CHANGEABLE`, or single values, see `is_changeable`.

    Returns:
        What differs and may, code included.

    Raises:
        CheckpointError: with every key that changed and is not allowed to, and both values; or for a permission of what
            neither run has.
    """
    changes = changes_of(checkpoint, identity)
    refused = [change for change in changes if not change.is_allowed_by(allow)]
    if refused:
        more = f"; and {len(refused) - _MOST_TOLD} more" if refused[_MOST_TOLD:] else ""
        raise CheckpointError(
            f"{checkpoint.path} belongs to another run: {'; '.join(map(str, refused[:_MOST_TOLD]))}{more}. "
            f"Resume with the same values, or start a new run with resume=none.{_way_out(refused, allow)}"
        )
    _check_permissions(allow, checkpoint.values["identity"], identity)
    return changes


def changes_of(checkpoint: Checkpoint, identity: dict[str, Any]) -> list[Change]:
    """In what the run of a checkpoint differs from that of an identity, permitted or not."""
    saved = with_new_names(checkpoint.values["identity"])
    saved = {name: identity[name] for name in ("content", "code")} | saved  # once not recorded
    known = saved["code"].keys() & identity["code"].keys()  # which modules a model holds is no change of any of them
    saved, given = (one | {"code": {name: one["code"][name] for name in known}} for one in (saved, identity))
    was, now = _completed(_at_home(saved, given), given | {"model_files": None})
    return list(_differences(was, now))


def changed_options(changes: Sequence[Change]) -> frozenset[str]:
    """Options of the optimizer that have other values than in the checkpoint."""
    keys = [change.key.split(".") for change in changes]
    return frozenset(parts[1] for parts in keys if parts[0] == "optimizer" and len(parts) > 1)


def _way_out(refused: Sequence[Change], allow: Sequence[str]) -> str:
    if fixed := [plain(change.key) for change in refused if change.permission is None]:
        return f" Nothing permits another {', '.join(fixed[:_MOST_TOLD])} within a run."
    asked = ",".join(sorted({plain(str(change.permission)) for change in refused[:_MOST_TOLD]} | set(allow)))
    moved = "._target_" in asked
    return f" To change it on purpose: 'resume_allow=[{asked}]'." + (
        " Of _target_: only if it is the same class under another name." if moved else ""
    )


def _check_permissions(allow: Sequence[str], saved: dict[str, Any], identity: dict[str, Any]) -> None:
    """A misspelt name would be found only when it is needed."""
    known = {name for one in (saved, identity) for name in _keys_in(one)} | set(CHANGEABLE)
    for entry in allow:
        if entry not in known:
            options = sorted(name for name in known if is_changeable(name))
            raise CheckpointError(f"resume_allow=[{entry}]: neither run has it.{did_you_mean(entry, options)}")


def _keys_in(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"{prefix}{key}"
            yield from _keys_in(part, f"{prefix}{key}.")


def _names(entry: str, key: str) -> bool:
    return key == entry or key.startswith(f"{entry}.")


def _last_name(target: Any) -> str:
    return str(target).rpartition(".")[2]


def _completed(saved: dict[str, Any], given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Both with keys that are newer than them, and the options that their configs left to the optimizer's class.

    So a run that began before an option existed, or before conf/ named it, can go on with the value that it had. The
    class is the given config's: a checkpoint never leads to an import.
    """
    defaults = _defaults_of(given["optimizer"])
    for identity in (saved, given):
        sections = {"schedule": _SCHEDULE_BEFORE, "parameters": _PARAMETERS_BEFORE}
        if _last_name(identity["optimizer"].get("_target_")) == _last_name(given["optimizer"].get("_target_")):
            sections["optimizer"] = defaults
        yield _BEFORE | identity | {name: before | identity[name] for name, before in sections.items()}


def _defaults_of(node: dict[str, Any]) -> dict[str, Any]:
    try:
        arguments = inspect.signature(find_target("optimizer", node)).parameters
    except (TargetError, TypeError, ValueError):  # a class that is gone, or without a signature
        return {}
    return {
        name: list(one.default) if isinstance(one.default, tuple) else one.default
        for name, one in arguments.items()
        if one.default is not inspect.Parameter.empty
    }


def _files_named(section: dict[str, Any]) -> dict[str, str]:
    """Of every value of a section that is a path here: a hash of sizes and beginnings of the files there."""
    return {
        key: _files_sha256(Path(value))
        for key, value in section.items()
        if isinstance(value, str) and value and os.path.exists(value)
    }


def _files_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
        with file.open("rb") as opened:
            start = opened.read(_HASHED_BYTES)
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode() + start)
    return digest.hexdigest()[:16]


def _at_home(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A saved identity with the paths of this machine, where the same files lie at another one: a moved run."""
    were, now = saved.get("model_files") or {}, given["model_files"]
    moved = {key: given["model"][key] for key in were.keys() & now.keys() if were[key] == now[key]}
    return saved | {"model": saved["model"] | moved, "model_files": None}


def _was_not_compared(saved: Any) -> bool:
    """Runs once recorded of a value from the environment only where it was from, or it is a secret."""
    return isinstance(saved, str) and bool(variables_in(saved)) and not saved.endswith(")")


def _differences(saved: Any, given: Any, prefix: str = "") -> Iterator[Change]:
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in sorted(saved.keys() | given.keys()):
            yield from _differences(saved.get(key), given.get(key), f"{prefix}.{key}" if prefix else key)
    elif saved != given and not _was_not_compared(saved):
        yield Change(prefix, saved, given)
