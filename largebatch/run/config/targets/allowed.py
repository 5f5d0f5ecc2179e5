"""Enforces LARGEBATCH_TARGETS, the list of what a config may call: by name before an import, by identity after it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import MethodType, ModuleType
from typing import Any

from largebatch.run.config.did_you_mean import did_you_mean

# Variable with names of modules or objects, separated by commas. Unset: every name is allowed that Hydra does not
# forbid, and a config is code. Read from the environment, never from a config.
ALLOW_LIST = "LARGEBATCH_TARGETS"
_OURS, _TORCH = "largebatch", ("torch.nn", "torch.optim")
# Home of the kernels that torch.nn.functional exports.
_KERNELS = ("torch._C._nn", "torch._VariableFunctionsClass")
# The parts of largebatch meant for configs; the rest runs compilers, reads folders and starts processes.
FOR_CONFIGS = frozenset(
    f"largebatch.{name}"
    for name in (
        "batch.SampleOrder",
        "batch.SequentialOrder",
        "batch.WeightedOrder",
        "data.DrawnImages",
        "data.DrawnTokens",
        "data.MaskedWords",
        "data.digits",
        "data.hub_images",
        "data.image_folder",
        "data.linear_regression",
        "data.masked_tokens",
        "data.noisy_quadratic",
        "data.paired_views",
        "data.parquet_images",
        "data.random_classification",
        "data.saved_dataset",
        "data.token_stream",
        "experiments.verify.planted.OddNet",
        "losses.CrossEntropy",
        "losses.InfoNCE",
        "losses.NextToken",
        "losses.OutputIsLoss",
        "losses.SquaredError",
        "losses.metrics.F1",
        "losses.metrics.MeanAbsoluteError",
        "losses.metrics.Perplexity",
        "losses.metrics.R2",
        "losses.metrics.TopK",
        "models.ConvNet",
        "models.GPT",
        "models.Linear",
        "models.MLP",
        "models.Quadratic",
        "models.TwoViews",
        "models.hugging_face",
        "models.resnet18",
        "models.resnet50",
        "optim.LAMB",
        "optim.LARS",
        "optim.MuonWithAdamW",
    )
)
# These return the object that `path` names, so `path` is checked in their place.
_LOOKUPS = frozenset(f"hydra.utils.get_{what}" for what in ("class", "method", "object", "static_method"))


def listed() -> tuple[str, ...] | None:
    """The entries of LARGEBATCH_TARGETS, allowed besides largebatch and torch; None: everything is allowed."""
    names = os.environ.get(ALLOW_LIST)
    entries = (one.strip().rstrip(".*") for one in (names or "").split(","))  # `package.*` means everything below it
    return None if names is None else tuple(one for one in entries if one)


def target_nodes(value: Any, key: str = "") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every mapping with a `_target_`, at any depth of mappings and lists, with the key where it stands."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield key, value
        for name, part in value.items():
            yield from target_nodes(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from target_nodes(part, f"{key}.{number}")


def target_problems(config: Any, key: str = "") -> list[str]:
    """Errors for names in a config that the list does not allow, one line each. Imports nothing.

    Args:
        config: mappings and lists, interpolations resolved.
        key: dotted key of `config`.
    """
    if listed() is None:
        return []
    nodes = list(target_nodes(config, key))
    problems = dict.fromkeys(problem for one in nodes if (problem := name_problem(*named_by(*one))))
    runs_remote = [(key, node["trust_remote_code"]) for key, node in nodes if node.get("trust_remote_code")]
    return [*problems, *(
        f"{key}.trust_remote_code={value}: runs code of a repository, and only code listed in {ALLOW_LIST} may run "
        "here. Read that code, and keep it as a module of your own."
        for key, value in runs_remote
    )]  # fmt: skip


def named_by(key: str, node: Mapping[Any, Any]) -> tuple[str, Any]:
    """(key, name) of the object that a node calls; for a lookup of Hydra, of the object that it looks up."""
    name = node["_target_"]
    if not isinstance(name, str) or name not in _LOOKUPS:
        return f"{key}._target_", name
    positional = node.get("_args_") or [None]
    return f"{key}.path", node.get("path", positional[0] if isinstance(positional, (list, tuple)) else None)


def name_problem(key: str, name: Any) -> str:
    """The reason that a name must not be imported; empty if it may be, or there is no list.

    Checked before the import, because importing a module runs it.
    """
    allowed = listed()
    if allowed is None:
        return ""
    if not isinstance(name, str):
        return f"{key}={name}: the dotted name of a class or function is missing."
    parts = name.split(".")
    if hidden := [part for part in parts if part.startswith("__") and part != "__main__"]:
        return f"{key}={name}: {hidden[0]} leads to Python's internals of an object. Name a class or function."
    if _is_below(name, (_OURS,)):
        return "" if parts[-1] in _LAST_PARTS and not any(one.startswith("_") for one in parts) else _of_ours(key, name)
    if parts[0] == "hydra":
        return f"{key}={name}: calls its argument. Name that object as `_target_` of a node of its own."
    if _is_below(name, allowed):
        return ""
    if _is_below(name, _TORCH) and not any(one.startswith("_") for one in parts):
        return ""
    return f"{key}={name}: is not {_on_the_list(allowed)} Add its module to the list if you trust it."


_LAST_PARTS = frozenset(name.rpartition(".")[2] for name in FOR_CONFIGS)


def identity_problem(key: str, name: str) -> str:
    """The reason that the object of an allowed name must not be called: it was defined elsewhere. Imports its modules.

    A listed module has everything that it imports as attributes, and a class everything of its bases.

    Raises:
        ImportError, AttributeError: if the name does not exist.
    """
    allowed = listed()
    if allowed is None or name in _LOOKUPS:
        return ""
    entries = (*allowed, *_TORCH, _OURS)
    trusted = max(one.count(".") for one in entries if _is_below(name, (one,))) + 1
    own: tuple[str, ...] = ()  # where the named entry itself was defined
    for number, found in enumerate(_steps(name), 1):
        home = own_name(found)
        if number == trusted:
            own = (home,)
        if number > trusted and not _is_below(home, (*entries, *_KERNELS, *own)):
            return (
                f"{key}={name}: is {home}, which is not {_on_the_list(allowed)} Name it by the module that defines it, "
                "and add that module to the list if you trust it."
            )
    return _of_ours(key, name) if _is_below(own_name(found), (_OURS,)) and not _is_for_configs(found) else ""


def own_name(found: Any) -> str:
    """Module and qualified name of an object's definition; for an instance, of its class."""
    if isinstance(found, ModuleType):
        return found.__name__
    if isinstance(found, functools.partial):
        return own_name(found.func)
    if isinstance(found, MethodType):
        return own_name(found.__func__)
    owner: Any = getattr(found, "__objclass__", None) or getattr(found, "__self__", None)
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if isinstance(name, str) and module is None and owner is not None:  # a builtin method
        kind = owner if isinstance(owner, (type, ModuleType)) else type(owner)
        bases = [one for one in getattr(kind, "__mro__", ()) if found.__name__ in vars(one)]
        return f"{own_name(bases[0] if bases else kind)}.{found.__name__}"
    if isinstance(name, str) and isinstance(module, str):
        return f"{module}.{name}"
    return own_name(type(found)) if not isinstance(found, type) else f"?.{name}"


def _steps(name: str) -> Iterator[Any]:
    """The objects along a dotted name, imported as in Hydra."""
    parts = name.split(".")
    found: Any = import_module(parts[0])
    yield found
    for number, part in enumerate(parts[1:], 2):
        if isinstance(found, ModuleType) and not hasattr(found, part):
            found = import_module(".".join(parts[:number]))
        else:
            found = getattr(found, part)
        yield found


def _is_below(name: str, entries: Sequence[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in entries)


def _is_for_configs(found: Any) -> bool:
    places = (one.rpartition(".") for one in FOR_CONFIGS)
    return any(getattr(sys.modules.get(module), name, None) is found for module, _, name in places)


def _of_ours(key: str, name: str) -> str:
    return (
        f"{key}={name}: is not meant for configs.{did_you_mean(name, sorted(FOR_CONFIGS))} With {ALLOW_LIST}, a config "
        "may call no other part of largebatch; `largebatch --help` and conf/ show all of them."
    )


def _on_the_list(allowed: Sequence[str]) -> str:
    return f"on the list of {ALLOW_LIST}: {', '.join((_OURS, *_TORCH, *allowed))}."
