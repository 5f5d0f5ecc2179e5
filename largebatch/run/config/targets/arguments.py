"""Checks the arguments of a node against the signature of its target: names, and types where annotated."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from largebatch.run.config.did_you_mean import did_you_mean
from largebatch.run.config.targets.finding import TargetError, find_target
from largebatch.run.config.targets.wording import problem_of_type

SPECIAL = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")  # Hydra's own keys


def arguments_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a node."""
    named = {name: value for name, value in node.items() if name not in SPECIAL}
    return {name: value for name, value in named.items() if not (isinstance(value, str) and value == "???")}


def check_arguments(key: str, node: Mapping[str, Any], *, supplied: tuple[str, ...] = ()) -> None:
    """Check the node's keys and values against the target's signature.

    Args:
        key: dotted key of the node.
        node: `_target_` and its arguments.
        supplied: arguments that largebatch adds.

    Raises:
        TargetError: one line for each argument that is unknown, missing, of a wrong type, or added by largebatch.
    """
    target = find_target(key, node)
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return
    problems = [
        *(_problems_of_names(key, node, parameters, supplied) or _absent(key, node, parameters, supplied)),
        *_problems_of_types(key, node, Hints(target), parameters, _positional(key, node)),
    ]
    if problems:
        raise TargetError(*problems)


def _positional(key: str, node: Mapping[str, Any]) -> list[Any]:
    positional = node.get("_args_", [])
    if not isinstance(positional, (list, tuple)):
        raise TargetError(f"{key}._args_={positional}: the arguments without a name are a list, [a, b].")
    return list(positional)


def _problems_of_names(
    key: str,
    node: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    supplied: tuple[str, ...],
) -> list[str]:
    named = _named(parameters)
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    problems = []
    for name, value in arguments_of(node).items():
        if name in supplied:
            problems.append(f"{key}.{name}={value}: largebatch sets this argument itself. Remove it.")
        elif name not in named and not takes_any:
            options = [option for option in named if option not in supplied]
            takes = f" It takes {', '.join(options) or 'nothing'}. {_left_out(f'{key}.{name}', value)}"
            hint = did_you_mean(name, options) or takes
            problems.append(f"{key}.{name}={value}: {node['_target_']} has no such argument.{hint}")
    return problems


def _left_out(key: str, value: Any) -> str:
    # Hydra's ~KEY takes a key that is null for one that does not exist.
    if value is not None:
        return f"Leave it out: ~{key}"
    group = key.partition(".")[0]
    return f"Leave it out: name the arguments in FOLDER/{group}/NAME.yaml, and give --config-dir FOLDER {group}=NAME."


def _absent(
    key: str, node: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], supplied: tuple[str, ...]
) -> list[str]:
    required = [name for name in _named(parameters) if parameters[name].default is inspect.Parameter.empty]
    absent = [one for one in required if one not in arguments_of(node) and one not in supplied]
    if not absent or "_args_" in node or node.get("_partial_"):
        return []
    return [f"{key}: {node['_target_']} needs {', '.join(absent)}. Give {key}.{absent[0]}=... in the config."]


def _named(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    return [name for name, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]


def _problems_of_types(
    key: str,
    node: Mapping[str, Any],
    hints: Hints,
    parameters: Mapping[str, inspect.Parameter],
    positional: list[Any],
) -> Iterator[str]:
    others = next((one for one in parameters.values() if one.kind is one.VAR_KEYWORD), None)
    in_order = [one for one in parameters.values() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    rest = next((one for one in parameters.values() if one.kind is one.VAR_POSITIONAL), None)
    pairs = [(name, value, parameters.get(name, others)) for name, value in arguments_of(node).items()]
    pairs += [
        (f"_args_.{number}", value, in_order[number] if number < len(in_order) else rest)
        for number, value in enumerate(positional)
    ]
    for name, value, parameter in pairs:
        if parameter is not None and (problem := problem_of_type(value, hints(parameter), parameter.default)):
            yield f"{key}.{name}={value}: {node['_target_']} takes {problem}"


class Hints:
    """Evaluates the annotations of one target, each by itself; one that fails gives Any."""

    def __init__(self, target: Any) -> None:
        function = target
        if isinstance(target, type):
            is_made_by_init = any("__init__" in vars(one) for one in target.__mro__[:-1])
            function = getattr(target, "__init__" if is_made_by_init else "__new__")
        function = inspect.unwrap(getattr(function, "__func__", function))
        module = sys.modules.get(str(getattr(function, "__module__", None) or getattr(target, "__module__", None)))
        self._globals = {**(vars(module) if module else {}), **getattr(function, "__globals__", {})}
        self._locals = dict(vars(target)) if isinstance(target, type) else {}

    def __call__(self, parameter: inspect.Parameter) -> Any:
        """The annotation of a parameter; `Parameter.empty` if there is none, Any if it cannot be evaluated."""
        if parameter.annotation is parameter.empty:
            return parameter.empty

        def annotated() -> None: ...

        annotated.__annotations__ = {"value": parameter.annotation}
        try:
            return typing.get_type_hints(annotated, self._globals, self._locals)["value"]
        except Exception:  # names that only a type checker imports, prose, annotations of other libraries
            return Any


def needed_arguments(target: Any, node: Mapping[str, Any]) -> list[str]:
    """Positional arguments of a function that the config does not give."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return []
    return [
        name
        for name, one in parameters.items()
        if one.default is one.empty
        and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        and name not in node
    ]
