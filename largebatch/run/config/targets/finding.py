"""Finds the object that `_target_` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object

from largebatch.records.renamed import TARGETS
from largebatch.run.config.targets.allowed import identity_problem, name_problem, named_by


class TargetError(ValueError):
    """A `_target_` that cannot be called with the config's arguments; `args` holds one line per reason."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def find_target(key: str, node: Mapping[str, Any]) -> Callable[..., Any]:
    """The callable that `node["_target_"]` names.

    Raises:
        TargetError: if it does not exist, with the import error; or if the list does not allow it.
    """
    name = node.get("_target_")
    if not isinstance(name, str):
        raise TargetError(f"{key}._target_={name}: the dotted name of a class or function is missing.")
    if name in TARGETS:
        raise TargetError(f"{key}._target_={name}: has moved. Write {key}._target_={TARGETS[name]}.")
    if problem := listing_problem(*named_by(key, node)):
        raise TargetError(problem)
    try:
        target = get_object(name)
    except InstantiationException as error:  # refused by Hydra's own policy
        raise TargetError(f"{key}._target_={name}: {first_line(error)}") from error
    except Exception as error:
        raise TargetError(_not_imported(f"{key}._target_", name, error)) from error
    if not callable(target):
        raise TargetError(f"{key}._target_={name}: is a {type(target).__name__}, not a class or function.")
    return target


def listing_problem(key: str, name: Any) -> str:
    """The reason that the list does not allow a name, before or after its import; empty if it does, or is not set."""
    try:
        return name_problem(key, name) or identity_problem(key, name)
    except Exception as error:
        return _not_imported(key, name, error)


def _not_imported(key: str, name: Any, error: Exception) -> str:
    cause = error.__cause__ or error
    return (
        f"{key}={name}: cannot be imported ({type(cause).__name__}: {first_line(cause)}). "
        "Check the dotted name; your own modules must be on PYTHONPATH or in the current folder."
    )


def first_line(error: BaseException) -> str:
    """First line of an error's message; empty if it has none."""
    return (str(error).splitlines() or [""])[0]
