"""What a config may name where whoever starts the process lists it: by name before an import, by identity after it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import MethodType, ModuleType
from typing import Any

from largebatch.run.config.did_you_mean import did_you_mean

# A variable with names of modules or objects, separated by commas. Unset: everything may be named that Hydra does not
# forbid, and a config is code. It is read from the environment, never from a config.
ALLOW_LIST = "LARGEBATCH_TARGETS"
_OURS, _TORCH = "largebatch", ("torch.nn", "torch.optim")
# Where torch keeps the kernels that torch.nn.functional passes on.
_KERNELS = ("torch._C._nn", "torch._VariableFunctionsClass")
# What of largebatch is meant for configs; the rest of it runs compilers, reads folders and starts processes.
FOR_CONFIGS = frozenset(
    f"largebatch.{name}"
    for name in (
        "data.digits",
        "data.hub_images",
        "data.image_folder",
        "data.linear_regression",
        "data.masked_tokens",
        "data.noisy_quadratic",
        "data.paired_views",
        "data.parquet_images",
        "data.random_classification",
        "data.token_stream",
        "experiments.verify.planted.OddNet",
        "losses.CrossEntropy",
        "losses.InfoNCE",
        "losses.NextToken",
        "losses.OutputIsLoss",
        "losses.SquaredError",
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
# These hand on what `path` names: that is held against the list in their place.
_LOOKUPS = frozenset(f"hydra.utils.get_{what}" for what in ("class", "method", "object", "static_method"))


def listed() -> tuple[str, ...] | None:
    """What whoever started this process allows besides what comes with largebatch and torch; None: anything."""
    names = os.environ.get(ALLOW_LIST)
    entries = (one.strip().rstrip(".*") for one in (names or "").split(","))  # `package.*` is what is below it
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
    """Names of a config that the list does not allow, one line each. Imports nothing.

    Args:
        config: mappings and lists, interpolations resolved.
        key: where it stands.
    """
    if listed() is None:
        return []
    nodes = list(target_nodes(config, key))
    problems = dict.fromkeys(problem for one in nodes if (problem := name_problem(*named_by(*one))))
    runs_remote = [(key, node["trust_remote_code"]) for key, node in nodes if node.get("trust_remote_code")]
    return [*problems, *(
        f"{key}.trust_remote_code={value}: runs code that comes with a repository, and what may run here is listed in "
        f"{ALLOW_LIST}. Read that code, and keep it as a module of your own."
        for key, value in runs_remote
    )]  # fmt: skip


def named_by(key: str, node: Mapping[Any, Any]) -> tuple[str, Any]:
    """What a node calls, with its key; where it is a lookup of Hydra, what that leads to."""
    name = node["_target_"]
    if not isinstance(name, str) or name not in _LOOKUPS:
        return f"{key}._target_", name
    positional = node.get("_args_") or [None]
    return f"{key}.path", node.get("path", positional[0] if isinstance(positional, (list, tuple)) else None)


def name_problem(key: str, name: Any) -> str:
    """Why a name must not be looked up, before anything is imported; empty: it may be, or nobody made a list.

    To import a module is to run it.
    """
    allowed = listed()
    if allowed is None:
        return ""
    if not isinstance(name, str):
        return f"{key}={name}: the dotted name of a class or function is missing."
    parts = name.split(".")
    if hidden := [part for part in parts if part.startswith("__") and part != "__main__"]:
        return f"{key}={name}: {hidden[0]} leads to what Python keeps about an object. Name a class or function."
    if _is_below(name, (_OURS,)):
        return "" if parts[-1] in _LAST_PARTS and not any(one.startswith("_") for one in parts) else _of_ours(key, name)
    if parts[0] == "hydra":
        return f"{key}={name}: looks up and calls what it is given. Name that as `_target_` of a node of its own."
    if _is_below(name, allowed):
        return ""
    if _is_below(name, _TORCH) and not any(one.startswith("_") for one in parts):
        return ""
    return f"{key}={name}: is not {_on_the_list(allowed)} Add its module there if you trust it."


_LAST_PARTS = frozenset(name.rpartition(".")[2] for name in FOR_CONFIGS)


def identity_problem(key: str, name: str) -> str:
    """Why the object of an allowed name must not be called: it was defined elsewhere. Imports the modules of the name.

    A module of the list has whatever it imports as its attributes, and a class what its bases have.

    Raises:
        ImportError, AttributeError: if the name leads nowhere.
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
                f"{key}={name}: is {home}, which is not {_on_the_list(allowed)} Name it by where it is defined, and "
                "add that module there if you trust it."
            )
    return _of_ours(key, name) if _is_below(own_name(found), (_OURS,)) and not _is_for_configs(found) else ""


def own_name(found: Any) -> str:
    """Module and qualified name under which an object was defined; of an instance those of its class."""
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
    """The objects on the way of a dotted name, imported as Hydra does it."""
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
        f"{key}={name}: is not among what largebatch has for configs.{did_you_mean(name, sorted(FOR_CONFIGS))} With "
        f"{ALLOW_LIST} nothing else of it is called; `largebatch --help` and conf/ show what there is."
    )


def _on_the_list(allowed: Sequence[str]) -> str:
    return f"on the list of {ALLOW_LIST}: {', '.join((_OURS, *_TORCH, *allowed))}."
