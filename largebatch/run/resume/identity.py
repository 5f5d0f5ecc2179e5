"""The identity of a run: values that must be equal to resume it, and values that may differ with permission."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from largebatch.optim.learning_rates import DEPTH_PATTERN
from largebatch.records.checkpoint import Checkpoint, CheckpointError
from largebatch.records.checkpoint.reading import plain
from largebatch.records.credentials import variables_in
from largebatch.records.renamed import with_new_names
from largebatch.run.config.augment import AugmentConfig
from largebatch.run.config.did_you_mean import did_you_mean
from largebatch.run.config.environment import comparable
from largebatch.run.config.model_node import arguments_of_model
from largebatch.run.config.scaling import SCALING_BEFORE
from largebatch.run.config.schema import CHANGEABLE, is_changeable
from largebatch.run.config.targets import TargetError, find_target
from largebatch.run.precision.device import has_kernels
from largebatch.run.prepare import Prepared
from largebatch.run.rank_agreement import code_of
from largebatch.run.resume.model_files import at_home, files_named
from largebatch.run.resume.ramp_identity import RAMP_BEFORE, ramp_identity
from largebatch.run.trunk import branch_identity

# A run with another value of one of these is another run: its checkpoints must not be resumed.
_IDENTITY = ("seed", "length", "clip_norm", "batch_norm", "scaling", "schedule", "optimizer", "parameters")
_MOST_SHOWN = 20  # changes
_OF_RUN = "Resume with the same values, or start a new run with resume=none."
_OF_TRUNK = "A cooldown has the values of its trunk: give the same, or leave out cooldown.checkpoint to train anew."

# The behaviour of runs before these keys existed.
_BEFORE: dict[str, Any] = {
    "batch_norm": "per_micro_batch",
    **dict.fromkeys(("start_weights", "ema", "sam", "guard", "cooldown")),
}
_AUGMENT_BEFORE = AugmentConfig().model_dump()
_SCHEDULE_BEFORE = {"warmup_kind": "gradual"}
_PARAMETERS_BEFORE: dict[str, Any] = {"lr_factor": None, "layer_decay": None, "layer_pattern": DEPTH_PATTERN}
_PARAMETERS_BEFORE |= {"freeze": [], "frozen_norms": "hold"}


def run_identity(prepared: Prepared) -> dict[str, Any]:
    """The identity of a run, as plain values."""
    config, numbers = prepared.config, prepared.numbers
    plain = comparable(prepared.public, config.model_dump())
    return {key: plain[key] for key in _IDENTITY} | {
        # A row has the same loss and gradient in any piece.
        "loss": {key: value for key, value in plain["loss"].items() if key != "logits_at_once"},
        "global_batch_size": numbers.plan.global_batch_size,
        "ramp": ramp_identity(config, plain["batch"]["ramp"]),
        "guard": plain["guard"] if config.guard.acts else None,
        "sam": plain["sam"] if config.sam.rho is not None else None,
        "ema": plain["ema"] if config.ema.is_used else None,
        "cooldown": branch_identity(numbers.schedule),
        "precision": config.precision.compute,
        "arithmetic": {"tf32": config.precision.tf32, "compile": config.precision.compile}
        | prepared.decisions.values(),
        "gradient_compression": config.precision.compressed,
        "content": prepared.content,
        "model": arguments_of_model(plain["model"]),
        "model_files": files_named(arguments_of_model(config.model)),
        "start_weights": None if prepared.start_weights is None else prepared.start_weights.sha256,
        "data": {"name": config.data.name, "num_samples": numbers.num_samples}
        | {key: plain["data"][key] for key in ("augment", "order")},
        "code": code_of(prepared),
    }


@dataclass(frozen=True)
class Change:
    """A value that differs between a checkpoint's run and the run that resumes it."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        if self.key == "start_weights":
            return f"the weights to start from differ (their hash was {plain(self.was)}, now {self.now})"
        if self.key == "content":
            return f"samples of the training set differ (their hash was {plain(self.was)}, now {self.now})"
        if self.is_code:
            name = self.key.removeprefix("code.")
            return f"the code of {plain(name)} differs (its hash was {plain(self.was)}, now {self.now})"
        keeps = ""
        if self.key == "arithmetic.compiled_optimizer":
            keeps = f"; +optimizer.compile={str(bool(self.was)).lower()} keeps its last digits"
        return f"{plain(self.key)} was {plain(self.was)}, now {self.now}{keeps}"

    @property
    def is_code(self) -> bool:
        """Whether code changed."""
        return self.key.startswith("code.")

    @property
    def is_only_told(self) -> bool:
        """Whether it is reported and recorded but needs no permission: most changes of code are harmless.

        Kernels and layouts change last digits alone, and another machine may have others.
        """
        return self.is_code or self.key.startswith("arithmetic.")

    @property
    def permission(self) -> str | None:
        """The value of resume_allow that permits the change; None: none does."""
        section = self.key.partition(".")[0]
        if section in CHANGEABLE:
            return section
        # A model or a loss may have been renamed; only the user knows whether it is still the same class. The state of
        # an optimizer belongs to the name of its class, whose module may have moved.
        is_other_class = self.key == "optimizer._target_" and _last_name(self.was) != _last_name(self.now)
        return self.key if is_changeable(self.key) and not is_other_class else None

    def is_allowed_by(self, entries: Sequence[str]) -> bool:
        """Whether one of these values of resume_allow names the key or its section."""
        if self.is_only_told:
            return True
        return self.permission is not None and any(_names(entry, self.key) for entry in entries)


def check_identity(
    checkpoint: Checkpoint, identity: dict[str, Any], *, allow: Sequence[str] = (), of_trunk: bool = False
) -> list[Change]:
    """Refuse to continue a run as another one.

    Args:
        checkpoint: to continue from.
        identity: of the run that resumes it.
        allow: sections of `CHANGEABLE`, or single values, that may differ; see `is_changeable`.
        of_trunk: whether the checkpoint is that of a run which this one leaves.

    Returns:
        the permitted changes, code included.

    Raises:
        CheckpointError: with every change that is not permitted, with both values; or for a permission of a key that
            neither run has.
    """
    changes = changes_of(checkpoint, identity)
    refused = [change for change in changes if not change.is_allowed_by(allow)]
    if refused:
        more = f"; and {len(refused) - _MOST_SHOWN} more" if refused[_MOST_SHOWN:] else ""
        raise CheckpointError(
            f"{checkpoint.path} belongs to another run: {'; '.join(map(str, refused[:_MOST_SHOWN]))}{more}. "
            f"{_OF_TRUNK if of_trunk else _OF_RUN}{_way_out(refused, allow)}"
        )
    _check_permissions(allow, checkpoint.values["identity"], identity)
    return changes


def changes_of(checkpoint: Checkpoint, identity: dict[str, Any]) -> list[Change]:
    """All differences between the run of a checkpoint and an identity, permitted or not."""
    saved = with_new_names(checkpoint.values["identity"])
    newer = ("content", "code", "arithmetic", "gradient_compression")  # older versions did not record them
    saved = {name: identity[name] for name in newer if name in identity} | saved
    saved, identity = _with_path(saved), _with_path(identity)
    known = saved["code"].keys() & identity["code"].keys()  # a module in only one of them is no change of code
    saved, given = (one | {"code": {name: one["code"][name] for name in known}} for one in (saved, identity))
    was, now = _completed(at_home(saved, given), given | {"model_files": None})
    return list(_differences(was, now))


def _with_path(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity with the path of LARS and LAMB among the arithmetic; older runs have it as the option alone."""
    optimizer, arithmetic = identity["optimizer"], identity["arithmetic"]
    if has_kernels(optimizer):
        arithmetic = {"compiled_optimizer": optimizer.get("compile") is True} | arithmetic
        optimizer = {name: value for name, value in optimizer.items() if name != "compile"}
    return identity | {"optimizer": optimizer, "arithmetic": {"compiled_optimizer": False} | arithmetic}


def _way_out(refused: Sequence[Change], allow: Sequence[str]) -> str:
    if fixed := [plain(change.key) for change in refused if change.permission is None]:
        of_format = [plain(change.was) for change in refused if change.key == "precision"]
        return f" Nothing permits another {', '.join(fixed[:_MOST_SHOWN])} within a run." + "".join(
            f" Set precision={name} to go on in the number format of the run." for name in of_format
        )
    asked = ",".join(sorted({plain(str(change.permission)) for change in refused[:_MOST_SHOWN]} | set(allow)))
    moved = "._target_" in asked
    return f" To change it on purpose: 'resume_allow=[{asked}]'." + (
        " Permit _target_ only if it is the same class under another name." if moved else ""
    )


def _check_permissions(allow: Sequence[str], saved: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuse misspelt permissions, which would otherwise be found only when needed."""
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
    """Both identities, completed with keys newer than them and with default options of the optimizer's class.

    So a run that started before an option existed, or before conf/ named it, continues with the value that it had. The
    class is that of the given config: a checkpoint never causes an import.
    """
    defaults = _defaults_of(given["optimizer"])
    for identity in (saved, given):
        sections = {"schedule": _SCHEDULE_BEFORE, "parameters": _PARAMETERS_BEFORE, "scaling": SCALING_BEFORE}
        if _last_name(identity["optimizer"].get("_target_")) == _last_name(given["optimizer"].get("_target_")):
            sections["optimizer"] = defaults
        completed = {name: before | identity[name] for name, before in sections.items()}
        completed["ramp"] = RAMP_BEFORE | (identity.get("ramp") or {})
        data = identity["data"] | {"augment": _AUGMENT_BEFORE | identity["data"]["augment"]}
        yield _BEFORE | identity | completed | {"data": data}


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


def _was_not_compared(saved: Any) -> bool:
    """Whether a value from the environment has no hash: of an older version, or a secret."""
    return isinstance(saved, str) and bool(variables_in(saved)) and not saved.endswith(")")


def _differences(saved: Any, given: Any, prefix: str = "") -> Iterator[Change]:
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in sorted(saved.keys() | given.keys()):
            yield from _differences(saved.get(key), given.get(key), f"{prefix}.{key}" if prefix else key)
    elif saved != given and not _was_not_compared(saved):
        yield Change(prefix, saved, given)
