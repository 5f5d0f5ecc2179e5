"""Everything that reads a checkpoint, tried on a hostile one, in this process and under a deadline."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from largebatch.__main__ import main
from largebatch.cli.composition.composing import compose_config
from largebatch.records.checkpoint import Checkpoint, CheckpointError, newest_valid, require_model_fit
from largebatch.records.run_folder import RunFolder
from largebatch.run.build import open_run
from largebatch.run.prepare import Prepared, prepare
from largebatch.run.resume import check_identity, find_checkpoint, run_identity
from largebatch.run.resume.fitting import fits_run
from largebatch.training.loop import train
from tests.deadline import deadline
from tests.unit.records.hostile_checkpoints import PLANTED, Case

OPTIONS = (
    "model=mlp",
    "data=synthetic",
    "logger=none",
    "observers.progress=false",
    "optimizer=adamw",
    "batch.total=64",
    "length=6steps",
    "schedule.warmup=1steps",
    "guard.policy=skip",
    "observers.checkpoint.every=2steps",
    "observers.checkpoint.keep=9",
    "observers.evaluation.every=null",
)
GOOD, HOSTILE = "step_00000002", "step_00000004"
DEADLINE_S, MOST_BYTES = 60, 2**30  # of memory, that a case may add to what the process had

ONE: Any = SimpleNamespace(is_main=True, world_size=1, broadcast=lambda value: value)


@dataclass(frozen=True)
class Saved:
    """A run of which two checkpoints are left, and the same run prepared to go on."""

    folder: Path
    prepared: Prepared
    identity: dict[str, Any]

    @classmethod
    def made(cls, folder: Path, *options: str) -> Saved:
        """Train it."""
        config = compose_config([*OPTIONS, *options, f"run.dir={folder}"])
        prepared = prepare(config, os.environ)
        with open_run(prepared, lambda: False, ()) as job:
            train(job.run)
        shutil.rmtree(folder / "checkpoints" / "step_00000006")
        return cls(folder, prepared, run_identity(prepared))

    def hostile(self, case: Case, folder: Path) -> Path:
        """A copy of the run whose newest checkpoint the case has changed."""
        shutil.copytree(self.folder, folder)
        case.apply(folder / "checkpoints" / HOSTILE)
        return folder

    def resume(self, folder: Path, resume: str = "auto") -> tuple[Checkpoint | None, list[str]]:
        """As `largebatch train resume=...` chooses its checkpoint."""
        found, notes = find_checkpoint(resume, RunFolder(folder), ONE, fits=fits_run(self.prepared, self.identity))
        if found is not None:
            check_identity(found, self.identity)
        return found, notes

    def measure(self, folder: Path) -> Checkpoint | None:
        """As the verbs that measure a model choose its weights."""
        fits = partial(require_model_fit, module=self.prepared.model, any_precision=True)
        return find_checkpoint(str(folder), RunFolder(folder), ONE, key="measure.checkpoint", fits=fits)[0]


def tried(saved: Saved, case: Case, folder: Path) -> list[str]:
    """What is wrong with how every consumer takes the case; nothing, if all is well."""
    where = saved.hostile(case, folder)
    path = where / "checkpoints" / HOSTILE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = [f"{kind}: {fault}" for kind, fault in _faults(saved, case, where, path)]
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if added > MOST_BYTES:
        wrong.append(f"memory: {added:,} bytes more")
    if PLANTED in sys.modules:
        wrong.append("the planted module was imported")
    return wrong


def _faults(saved: Saved, case: Case, where: Path, path: Path) -> Iterator[tuple[str, str]]:
    for kind, consume in {
        "resume=auto": lambda: _passed_over(*saved.resume(where), case),
        "resume=PATH": lambda: _refused(*saved.resume(where, str(path)), case),
        "measure": lambda: _of(saved.measure(where), case),
        "verify": lambda: _verb("verify", str(where)),
        "export": lambda: _verb("export", str(path), "--out", str(where / "w.safetensors")),
        "newest_valid": lambda: newest_valid(where / "checkpoints") and None,
    }.items():
        try:
            with deadline(DEADLINE_S):
                fault = consume()
        except CheckpointError as error:
            fault = _message(str(error))
        except BaseException as error:
            fault = f"{type(error).__name__}: {str(error)[:300]}"
        if fault:
            yield kind, fault


def _passed_over(found: Checkpoint | None, notes: list[str], case: Case) -> str | None:
    if found is not None and found.path.name == HOSTILE and case.may_be_valid:
        return None
    if found is None or found.path.name != GOOD:
        return f"went on from {found and found.path}"
    named = [note for note in notes if HOSTILE in note]
    return _message(named[0]) if named else f"not named in {notes}"


def _refused(found: Checkpoint | None, notes: list[str], case: Case) -> str | None:
    return None if case.may_be_valid else f"accepted {found and found.path}: {notes}"


def _of(found: Checkpoint | None, case: Case) -> str | None:
    is_whole = found is not None and (found.path.name == GOOD or case.weights_are_whole or case.may_be_valid)
    return None if is_whole else f"measured {found and found.path}"


def _verb(what: str, *arguments: str) -> str | None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(["checkpoint", what, *arguments])
    return None if code in (0, 1, 2) and "Traceback" not in said.getvalue() else f"{code}: {said.getvalue()[:300]}"


def _message(text: str) -> str | None:
    """What is wrong with a message: it is short, on one line, and acts on no terminal."""
    if not text.isprintable() or len(text) > 2_000:
        return f"message {text[:200]!r} ({len(text)} characters)"
    return None
