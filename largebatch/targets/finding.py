"""Finds what `_target_` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object

from largebatch.targets.allowed import identity_problem, name_problem, named_by


class TargetError(ValueError):
    """A `_target_` that cannot be called as the config asks; `args` are its reasons, a line for each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def find_target(key: str, node: Mapping[str, Any]) -> Callable[..., Any]:
    """The callable that `node["_target_"]` names.

    Raises:
        TargetError: if there is none, with the import error that hid it; or if the list does not allow it.
    """
    name = node.get("_target_")
    if not isinstance(name, str):
        raise TargetError(f"{key}._target_={name}: the dotted name of a class or function is missing.")
    where, called = named_by(key, node)
    if problem := name_problem(where, called):
        raise TargetError(problem)
    try:
        problem = identity_problem(where, called)
        target = get_object(name)
    except InstantiationException as error:  # refused by Hydra's own policy
        raise TargetError(f"{key}._target_={name}: {first_line(error)}") from error
    except Exception as error:
        cause = error.__cause__ or error
        raise TargetError(
            f"{where}={called}: cannot be imported ({type(cause).__name__}: {first_line(cause)}). "
            "Check the dotted name; your own modules must be on PYTHONPATH or in the current folder."
        ) from error
    if problem:
        raise TargetError(problem)
    if not callable(target):
        raise TargetError(f"{key}._target_={name}: is a {type(target).__name__}, not a class or function.")
    return target


def first_line(error: BaseException) -> str:
    """Of its message; empty if there is none."""
    return (str(error).splitlines() or [""])[0]
