"""Checks that all ranks of a job train the same run: config, code, data and weights."""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from largebatch.data.iterables import num_samples_of
from largebatch.data.subset import innermost
from largebatch.distributed.checksums import combine_checksums, parameter_checksums
from largebatch.distributed.gather import disagreement, gather_ints, gather_texts
from largebatch.distributed.rendezvous import LauncherError
from largebatch.distributed.runtime import Runtime
from largebatch.records.flat_config import flat
from largebatch.records.run_folder import environment
from largebatch.run.config.environment import comparable
from largebatch.run.config.targets import target_nodes
from largebatch.run.prepare import Prepared

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = {"site-packages", "dist-packages"}  # at any path: an environment may share another one's packages
_STANDARD = Path(sysconfig.get_path("stdlib"))
_COMPARED_BY_VERSION = ("largebatch", "torch")
_MOST_LINES = 12
# Packages whose versions change numbers; other versions may differ between ranks.
_NUMERIC_PACKAGES = ("torch", "accelerate", "numpy")


def run_fingerprint(prepared: Prepared) -> dict[str, str]:
    """Values that must be equal on every rank, as texts: the config, and hashes of code, data and weights.

    The section `run` and the folder `data.path` are left out: folders may differ between machines, and their content
    is hashed. A few samples stand for the whole data set, see `sampled_content`.
    """
    path, config = prepared.config.data.path, prepared.config.model_dump()
    folder, resolved = path if isinstance(path, str) else None, flat(config)
    values = {
        f"config {key}": _without_folder(str(value), str(resolved.get(key, value)), folder)
        for key, value in flat(comparable(prepared.public, config)).items()
        if not key.startswith("run.")
    }
    packages = environment()["packages"]
    weights = {} if prepared.sends_weights else {"initial weights": _weights(prepared)}
    return values | {
        "code of largebatch": _code_sha256(_PACKAGE),
        "code of the model, data set and loss": _own_code_sha256(prepared),
        **{f"version of {name}": str(packages[name]) for name in _NUMERIC_PACKAGES},
        "length of the training set": str(num_samples_of(prepared.train)),
        "samples of the training set": prepared.content,
        **weights,
    }


def _weights(prepared: Prepared) -> str:
    return f"0x{int(combine_checksums(parameter_checksums(prepared.model))) % 2**64:016x}"


def require_same_run(runtime: Runtime, fingerprint: dict[str, str]) -> None:
    """Refuse to train if fingerprints differ. Every rank calls it, before any other collective.

    Raises:
        LauncherError: on every rank, with each difference, its rank and both values.
    """
    text = json.dumps(fingerprint, sort_keys=True)
    own = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
    if not disagreement(gather_ints(runtime, torch.tensor([own], device=runtime.device))[:, 0].tolist()):
        return
    fingerprints = [json.loads(one) for one in gather_texts(runtime, text)]
    keys = sorted(set().union(*fingerprints))
    columns = {key: [values.get(key, "no value") for values in fingerprints] for key in keys}
    found = [one.explain(key) for key, column in columns.items() if (one := disagreement(column))]
    hidden = [f"and {len(found) - _MOST_LINES} more"] if len(found) > _MOST_LINES else []
    lines = "".join(f"\n  - {line}" for line in found[:_MOST_LINES] + hidden)
    raise LauncherError(
        f"The ranks of this job are not the same run:{lines}\n"
        "Gradients of different runs must not be mixed. Start every rank with the same command, code and data; items "
        "of a data set may draw random numbers only from the global generators of torch, numpy and random."
    )


def _without_folder(text: str, value: str, path: str | None) -> str:
    if path and (value == path or value.startswith(f"{path}/")):
        return "${data.path}" + value.removeprefix(path)
    return text


@cache
def _code_sha256(package: Path) -> str:
    """Of all of its files, once per process: what a process has imported stays as it is."""
    return _files_sha256({str(path.relative_to(package)): path for path in package.rglob("*.py")})


def code_of(prepared: Prepared) -> dict[str, str]:
    """Module -> shortened hash of its file: this package as a whole, the targets of the config, and the user's modules.

    The user's modules are those outside of installed packages. They are followed through imports: a layer that a model
    imports from the file beside it counts.
    """
    names = {one for pair in _named_modules(prepared).values() for one in pair}
    files = {name: path for name in _with_own_modules(names) if (path := _file_of(name)) is not None}
    return {"largebatch": _code_sha256(_PACKAGE)[:16]} | {
        name: _files_sha256({"": path})[:16]
        for name, path in sorted(files.items())
        if name.partition(".")[0] not in _COMPARED_BY_VERSION
    }


def _own_code_sha256(prepared: Prepared) -> str:
    """Hash of the files that define the targets of the config, without the modules that these import."""
    files = {
        f"{role} {what}": path
        for role, pair in _named_modules(prepared).items()
        for what, module in zip(("target", "class"), pair, strict=True)
        if (path := _file_of(module)) is not None
    }
    return _files_sha256(files)


def _named_modules(prepared: Prepared) -> dict[str, tuple[str, str]]:
    """Role -> module of the target, and of the class that it made: a target may be a function of another package."""
    config = prepared.config
    own = {"collate_fn": config.data.collate_fn, "transform": config.data.augment.transform}
    modules = {key: str(node["_target_"]).rpartition(".")[0] for key, node in target_nodes(own)}
    return {key: (module, module) for key, module in modules.items()} | {
        role: (node["_target_"].rpartition(".")[0], type(made).__module__)
        for role, node, made in (
            ("model", config.model, prepared.model),
            ("data", config.data.train, innermost(prepared.train)),
            ("loss", config.loss, prepared.loss),
        )
    }


def _with_own_modules(names: Iterable[str]) -> set[str]:
    """These modules and, recursively, every module of the user's that they import or take an object from."""
    found, rest = set[str](), list(names)
    while rest:
        name = rest.pop()
        if name in found or (module := sys.modules.get(name)) is None:
            continue
        found.add(name)
        if _is_own(name):
            rest += filter(_is_own, {*map(_module_of, vars(module).values()), *_imported_by(module)})
    return found


def _module_of(thing: Any) -> str:
    if isinstance(thing, ModuleType):
        return thing.__name__
    try:
        return str(thing.__module__)
    except Exception:  # plain values have none, and lazy proxies may fail
        return ""


def _imported_by(module: ModuleType) -> set[str]:
    """Loaded modules named in a module's code: `from settings import WIDTH` leaves only a number in its namespace."""
    try:
        code = module.__spec__.loader.get_code(module.__name__)  # type: ignore[union-attr]
    except Exception:  # a notebook, or a foreign loader
        return set()
    parents = ["", *accumulate(f"{part}." for part in (module.__package__ or "").split("."))]
    return {f"{parent}{name}" for parent in parents for name in code.co_names} & sys.modules.keys()


def _file_of(module: str) -> Path | None:
    path = getattr(sys.modules.get(module), "__file__", None)
    return Path(path) if path else None


def _is_own(module: str) -> bool:
    """Whether the module is the user's: not in site-packages, and not beside the record of an installation."""
    path = _file_of(module)
    if path is None or module.partition(".")[0] in _COMPARED_BY_VERSION or path.is_relative_to(_STANDARD):
        return False
    folders = path.parents[module.count(".") + (path.stem == "__init__") :]
    return not _INSTALLED & set(path.parts) and not (folders and _has_records(folders[0]))


@cache
def _has_records(folder: Path) -> bool:
    """Whether `pip install --target` made the folder: a project's own folder has at most an egg-info."""
    return any(folder.glob("*.dist-info"))


def _files_sha256(files: dict[str, Path]) -> str:
    """Hash of names and contents; a file that cannot be read counts as empty."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
