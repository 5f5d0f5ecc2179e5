"""What observers of the user's own remember: into a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from largebatch.distributed.of_rank0 import of_rank0
from largebatch.distributed.runtime import Runtime
from largebatch.records.checkpoint import Checkpoint, CheckpointError
from largebatch.records.checkpoint.nested_state import pack_nested, unpack_nested
from largebatch.records.checkpoint.run_fit import OWN_OBSERVERS
from largebatch.records.checkpoint.writing import require_storable
from largebatch.training.loop import Observer
from largebatch.training.raised import error_text


@runtime_checkable
class Stateful(Protocol):
    """An observer with a state to keep, called as torch calls it."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, in dicts and lists. Rank 0 alone calls it."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take up what `state_dict` returned on rank 0, on every rank and before `on_start`."""


def require_state_fits(observer: Observer) -> None:
    """Raise ValueError, before the run, for a state that a checkpoint cannot hold or give back."""
    name, has = type(observer).__name__, [hasattr(observer, one) for one in ("state_dict", "load_state_dict")]
    if any(has) and not all(has):
        there, absent = ("state_dict", "load_state_dict") if has[0] else ("load_state_dict", "state_dict")
        raise ValueError(f"{name} has {there} and no {absent}: a checkpoint needs both. Add it, or leave out both.")
    if isinstance(observer, Stateful):
        try:
            state, tensors = pack_nested(observer.state_dict(), "state")
            require_storable({"state": tensors}, {"state": state})
        except Exception as error:
            raise ValueError(
                f"{name}.state_dict() before the first step: {error_text(error)}. A state is dicts with text keys and "
                "lists, of plain values and tensors."
            ) from error


def own_states(observers: Mapping[str, Observer]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Plain values and tensors of the states of these observers, by name; rank 0 calls it."""
    values, tensors = dict[str, Any](), dict[str, Tensor]()
    for name, one in observers.items():
        if isinstance(one, Stateful):
            state, of_state = pack_nested(one.state_dict(), name)
            values[name] = {"class": type(one).__name__, "state": state}
            tensors |= of_state
    return values, tensors


def load_own_states(runtime: Runtime, observers: Mapping[str, Observer], checkpoint: Checkpoint) -> list[str]:
    """Give each observer its state of `checkpoint`, those of rank 0. Every rank calls it.

    Returns:
        Notes: observers may come and go between runs.

    Raises:
        CheckpointError: if an observer does not take its state.
    """
    tensors, notes = checkpoint.tensors.get(OWN_OBSERVERS, {}), list[str]()
    for name, saved in checkpoint.values.get(OWN_OBSERVERS, {}).items():
        one = observers.get(name)
        if not isinstance(one, Stateful) or type(one).__name__ != saved["class"]:
            now = "the run has no such observer" if one is None else f"it is a {type(one).__name__} now"
            notes.append(f"observers.{name}: its state, of a {saved['class']}, is left in the checkpoint: {now}")
            continue
        state = unpack_nested(saved["state"], lambda key: of_rank0(runtime, tensors[key]))
        try:
            one.load_state_dict(state)
        except Exception as error:
            raise CheckpointError(
                f"{checkpoint.path}: observers.{name} does not take its state: {error_text(error)}. Give the observer "
                "another name to begin without it."
            ) from error
    return notes
