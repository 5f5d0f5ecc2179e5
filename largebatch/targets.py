"""Objects of the user's own, named by `_target_`: errors say what is wrong with the name or its arguments."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from largebatch.nearest import did_you_mean

# A variable with names of modules, separated by commas; unset, everything may be named that Hydra does not forbid.
ALLOW_LIST = "LARGEBATCH_TARGETS"
_ALWAYS = ("largebatch", "torch.optim", "torch.nn")


class TargetError(ValueError):
    """A `_target_` that cannot be called as the config asks."""


def find_target(key: str, node: Mapping[str, Any]) -> Callable[..., Any]:
    """The callable that `node["_target_"]` names.

    Raises:
        TargetError: if there is none, with the import error that hid it.
    """
    name = node.get("_target_")
    if not isinstance(name, str):
        raise TargetError(f"{key}._target_={name}: the dotted name of a class or function is missing.")
    _require_allowed(key, name)
    try:
        target = get_object(name)
    except InstantiationException as error:  # refused by Hydra's own policy
        raise TargetError(f"{key}._target_={name}: {_first_line(error)}") from error
    except Exception as error:
        cause = error.__cause__ or error
        raise TargetError(
            f"{key}._target_={name}: cannot be imported ({type(cause).__name__}: {_first_line(cause)}). "
            "Check the dotted name; your own modules must be on PYTHONPATH or in the current folder."
        ) from error
    if not callable(target):
        raise TargetError(f"{key}._target_={name}: is a {type(target).__name__}, not a class or function.")
    return target


def _require_allowed(key: str, name: str) -> None:
    """Hold a name against the list of the environment, if there is one, before anything is imported.

    To import a module is to run it. So the list comes from whoever starts the process, never from a config.
    """
    listed = os.environ.get(ALLOW_LIST)
    if listed is None:
        return
    allowed = [*_ALWAYS, *(one.strip() for one in listed.split(",") if one.strip())]
    if not any(name == one or name.startswith(f"{one}.") for one in allowed):
        raise TargetError(
            f"{key}._target_={name}: is not on the list of {ALLOW_LIST}: {', '.join(allowed)}. "
            "Add its module there if you trust it."
        )


def check_arguments(key: str, node: Mapping[str, Any], *, supplied: tuple[str, ...] = ()) -> None:
    """Compare the node's keys with the target's signature.

    Args:
        key: where the node stands in the config.
        node: `_target_` and keyword arguments.
        supplied: arguments that we add ourselves.

    Raises:
        TargetError: for an unknown or missing argument, or one that we add ourselves.
    """
    target = find_target(key, node)
    given = [name for name in node if not (name.startswith("_") and name.endswith("_"))]
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return
    named = [name for name, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for name in given:
        if name in supplied:
            raise TargetError(f"{key}.{name}={node[name]}: largebatch itself gives this argument. Remove it.")
        if name not in named and not takes_any:
            options = [option for option in named if option not in supplied]
            hint = did_you_mean(name, options) or f" It takes {', '.join(options) or 'nothing'}."
            raise TargetError(f"{key}.{name}={node[name]}: {node['_target_']} has no such argument.{hint}")
    required = [name for name in named if parameters[name].default is inspect.Parameter.empty]
    absent = [name for name in required if name not in given and name not in supplied and "_args_" not in node]
    if absent:
        raise TargetError(
            f"{key}: {node['_target_']} needs {', '.join(absent)}. Give {key}.{absent[0]}=... in the config."
        )


def make(key: str, node: Mapping[str, Any], **supplied: Any) -> Any:
    """Call the target with the node's arguments and `supplied`.

    Raises:
        TargetError: for a name or argument that does not exist, or an error of the target itself.
    """
    check_arguments(key, node, supplied=tuple(supplied))
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    is_plain = all(map(_is_plain, arguments.values())) and not any(name.startswith("_") for name in arguments)
    try:
        if is_plain:  # Hydra finds it, by its own rules of what may be called, and need not copy and merge the rest
            target = instantiate({"_target_": node["_target_"], "_partial_": True})
            return target(**copy.deepcopy(arguments), **supplied)
        return instantiate(dict(node), _convert_="all", **supplied)
    except Exception as error:
        cause = (error.__cause__ if isinstance(error, InstantiationException) or not is_plain else None) or error
        raise TargetError(f"{key} ({node['_target_']}): {_text(cause)}") from error


def _is_plain(value: Any) -> bool:
    """A number, a text that Hydra takes as it is, or a list of these: no node that it would make something of."""
    if isinstance(value, list):
        return all(not isinstance(one, list) and _is_plain(one) for one in value)
    if isinstance(value, str):
        return value != "???" and "${" not in value
    return value is None or type(value) in (bool, int, float)


def _text(error: BaseException) -> str:
    known = isinstance(error, (ValueError, ImportError))
    return str(error) if known else f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
