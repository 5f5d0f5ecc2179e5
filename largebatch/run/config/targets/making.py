"""Instantiates a node of the config, inner nodes first."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from largebatch.run.config.targets.allowed import named_by, target_nodes
from largebatch.run.config.targets.arguments import arguments_of, check_arguments, needed_arguments
from largebatch.run.config.targets.finding import TargetError, find_target, first_line, listing_problem

_CONVERSIONS = ("none", "partial", "object", "all")


def make(key: str, node: Mapping[str, Any], **supplied: Any) -> Any:
    """Call the target with the node's arguments and `supplied`; inner nodes are instantiated first.

    Interpolations must be resolved: a text with `${` stays a text. Lists and mappings of the config become list and
    dict, unless `_convert_` is none.

    Raises:
        TargetError: for a name or argument that does not exist, an argument of a wrong type, or an error of the target.
    """
    return _call(key, node, supplied, recursive=True, convert="all")


def make_function(key: str, node: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that a node names: an object that can be called, or a function with the node's arguments filled in.

    Raises:
        TargetError: as `make`, and if what was made cannot be called.
    """
    target = find_target(key, node)
    if not inspect.isclass(target) and "_partial_" not in node and needed_arguments(target, node):
        node = {**node, "_partial_": True}
    made = make(key, node)
    if not callable(made):
        raise TargetError(f"{key}._target_={node['_target_']}: a {type(made).__name__} cannot be called.")
    return made


def _call(key: str, node: Mapping[str, Any], supplied: Mapping[str, Any], *, recursive: bool, convert: str) -> Any:
    check_arguments(key, node, supplied=tuple(supplied))
    recursive, convert = node.get("_recursive_", recursive), node.get("_convert_", convert)
    partial = node.get("_partial_", False)
    if not isinstance(recursive, bool) or not isinstance(partial, bool) or convert not in _CONVERSIONS:
        raise TargetError(
            f"{key}: _recursive_={recursive} and _partial_={partial} must be true or false, and _convert_={convert} "
            f"must be one of {', '.join(_CONVERSIONS)}."
        )

    def value(where: str, given: Any) -> Any:
        made = _value(where, given, recursive=recursive, convert=convert)
        return _as_config(made) if convert == "none" else made

    positional = [value(f"{key}._args_.{number}", one) for number, one in enumerate(node.get("_args_", ()))]
    named = {name: value(f"{key}.{name}", one) for name, one in arguments_of(node).items()}
    try:
        return _called(node["_target_"], partial)(*positional, **named, **supplied)
    except Exception as error:
        cause = (error.__cause__ if isinstance(error, InstantiationException) else None) or error
        raise TargetError(f"{key} ({node['_target_']}): {_text(cause)}") from error


def _called(name: str, partial: bool) -> Callable[..., Any]:
    """The target as Hydra's partial, which checks each call against Hydra's own block-list."""
    target = instantiate({"_target_": name, "_partial_": True})
    if not partial:
        return target

    def later(*args: Any, **kwargs: Any) -> Any:
        filled = type(target)(target.func, *args, **kwargs)
        vars(filled).update(vars(target))
        return filled

    return later


def _value(key: str, given: Any, *, recursive: bool, convert: str) -> Any:
    if not recursive:  # the target instantiates the nodes itself through Hydra, which does not know the list
        if problems := [problem for one in target_nodes(given, key) if (problem := listing_problem(*named_by(*one)))]:
            raise TargetError(*problems)
        return copy.deepcopy(given)
    if isinstance(given, Mapping):
        if "_target_" in given:
            return _call(key, given, {}, recursive=True, convert=convert)
        return {name: _value(f"{key}.{name}", one, recursive=True, convert=convert) for name, one in given.items()}
    if isinstance(given, (list, tuple)):
        return [_value(f"{key}.{number}", one, recursive=True, convert=convert) for number, one in enumerate(given)]
    return given


def _as_config(made: Any) -> Any:
    return OmegaConf.create(made, flags={"allow_objects": True}) if isinstance(made, (dict, list)) else made


def _text(error: BaseException) -> str:
    known = isinstance(error, (ValueError, ImportError))
    return str(error) if known else f"{type(error).__name__}: {first_line(error)}"
