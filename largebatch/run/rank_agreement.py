"""Whether all ranks of a job were started with the same run: config, code, data and weights."""

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

from largebatch.data.subset import innermost
from largebatch.distributed.checksums import combine_checksums, parameter_checksums
from largebatch.distributed.gather import disagreement, gather_ints, gather_texts
from largebatch.distributed.runtime import LauncherError, Runtime
from largebatch.records.flat_config import flat
from largebatch.records.run_folder import environment
from largebatch.run.config.environment import comparable
from largebatch.run.prepare import Prepared

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = {"site-packages", "dist-packages"}  # wherever they lie: an environment may share another one's
_STANDARD = Path(sysconfig.get_path("stdlib"))
_TOLD_BY_VERSION = ("largebatch", "torch")
_MOST_LINES = 12
# Versions that change numbers; of the others the ranks may have what they like.
_NUMERIC_PACKAGES = ("torch", "accelerate", "numpy")


def run_fingerprint(prepared: Prepared) -> dict[str, str]:
    """What must be the same on every rank, as texts: every config value, and hashes of code, data and weights.

    Of the config the section `run` is left out, and `data.path` wherever it occurs: folders may differ between
    machines, and what is in them is hashed. Of the data set some samples stand for all, see `sampled_content`.
    """
    path, config = prepared.config.data.path, prepared.config.model_dump()
    folder, resolved = path if isinstance(path, str) else None, flat(config)
    values = {
        f"config {key}": _without_folder(str(value), str(resolved.get(key, value)), folder)
        for key, value in flat(comparable(prepared.public, config)).items()
        if not key.startswith("run.")
    }
    packages = environment()["packages"]
    return values | {
        "code of largebatch": _code_sha256(),
        "code of the model, data set and loss": _own_code_sha256(prepared),
        **{f"version of {name}": str(packages[name]) for name in _NUMERIC_PACKAGES},
        "length of the training set": str(len(prepared.train)),
        "samples of the training set": prepared.content,
        "initial weights": f"0x{int(combine_checksums(parameter_checksums(prepared.model))) % 2**64:016x}",
    }


def require_same_run(runtime: Runtime, fingerprint: dict[str, str]) -> None:
    """Refuse to train when ranks have different fingerprints. Every rank calls it, before any other collective.

    Raises:
        LauncherError: on every rank, with what differs, on which rank, and both values.
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


def _without_folder(told: str, value: str, path: str | None) -> str:
    if path and (value == path or value.startswith(f"{path}/")):
        return "${data.path}" + value.removeprefix(path)
    return told


def _code_sha256() -> str:
    return _files_sha256({str(path.relative_to(_PACKAGE)): path for path in _PACKAGE.rglob("*.py")})


def code_of(prepared: Prepared) -> dict[str, str]:
    """Module -> hash of its file, shortened: of this package as a whole, what the config names, and own modules of it.

    Own modules are those that no installation put where they are. They are followed through what the named modules hold
    of them: a layer that a model imports from the file beside it counts.
    """
    names = {one for pair in _named_modules(prepared).values() for one in pair}
    files = {name: path for name in _with_own_modules(names) if (path := _file_of(name)) is not None}
    return {"largebatch": _code_sha256()[:16]} | {
        name: _files_sha256({"": path})[:16]
        for name, path in sorted(files.items())
        if name.partition(".")[0] not in _TOLD_BY_VERSION
    }


def _own_code_sha256(prepared: Prepared) -> str:
    """Of the files that define what the config names, whoever wrote them; not of what those import."""
    files = {
        f"{role} {what}": path
        for role, pair in _named_modules(prepared).items()
        for what, module in zip(("target", "class"), pair, strict=True)
        if (path := _file_of(module)) is not None
    }
    return _files_sha256(files)


def _named_modules(prepared: Prepared) -> dict[str, tuple[str, str]]:
    """Role -> module of the target, and of the class that it made: a target may be a function of somebody else's."""
    config = prepared.config
    return {
        role: (node["_target_"].rpartition(".")[0], type(made).__module__)
        for role, node, made in (
            ("model", config.model, prepared.model),
            ("data", config.data.train, innermost(prepared.train)),
            ("loss", config.loss, prepared.loss),
        )
    }


def _with_own_modules(names: Iterable[str]) -> set[str]:
    """These, and every own module that one of them holds, or something of it, or names in an import."""
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
    except Exception:  # plain values have none, and what stands for something else may not be there
        return ""


def _imported_by(module: ModuleType) -> set[str]:
    """Loaded modules that a module's code names, as an import does: `from settings import WIDTH` leaves a number."""
    try:
        code = module.__spec__.loader.get_code(module.__name__)  # type: ignore[union-attr]
    except Exception:  # of a notebook, or of a loader of others
        return set()
    parents = ["", *accumulate(f"{part}." for part in (module.__package__ or "").split("."))]
    return {f"{parent}{name}" for parent in parents for name in code.co_names} & sys.modules.keys()


def _file_of(module: str) -> Path | None:
    path = getattr(sys.modules.get(module), "__file__", None)
    return Path(path) if path else None


def _is_own(module: str) -> bool:
    """Whether no installation has put it where it is: into site-packages, or beside the record of what it installed."""
    path = _file_of(module)
    if path is None or module.partition(".")[0] in _TOLD_BY_VERSION or path.is_relative_to(_STANDARD):
        return False
    folders = path.parents[module.count(".") + (path.stem == "__init__") :]
    return not _INSTALLED & set(path.parts) and not (folders and _has_records(folders[0]))


@cache
def _has_records(folder: Path) -> bool:
    """Of `pip install --target`: a project's own folder has at most an egg-info."""
    return any(folder.glob("*.dist-info"))


def _files_sha256(files: dict[str, Path]) -> str:
    """Of names and contents; a file that cannot be read counts as empty."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
