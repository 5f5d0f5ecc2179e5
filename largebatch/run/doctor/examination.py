"""All checks, in the order in which a run needs what they look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from largebatch.run.doctor import job, machine, reach, software
from largebatch.run.doctor.diagnosis import Diagnosis

Check = Callable[[], Iterable[Diagnosis]]


def examine(folder: Path, environ: Mapping[str, str], *, network: bool) -> list[Diagnosis]:
    """Every finding about this machine.

    Args:
        folder: where runs are to be written; need not exist.
        environ: of the job.
        network: whether servers may be tried.
    """
    checks: dict[str, Check] = {
        "versions": software.versions,
        "devices": software.devices,
        "backends": software.backends,
        "cores": partial(machine.cores, environ),
        "memory": machine.memory,
        "shared memory": machine.shared_memory,
        "open files": machine.open_files,
        "disk": partial(machine.disk, folder),
        "launcher": partial(job.launcher, environ),
        "ports": partial(job.ports, environ),
        "two processes": job.meeting,
        "trackers": partial(reach.trackers, environ, network=network),
    }
    return [found for subject, check in checks.items() for found in outcome(subject, check)]


def outcome(subject: str, check: Check) -> list[Diagnosis]:
    """What a check found; a check that fails is a finding, and the others go on."""
    try:
        return list(check())
    except Exception as error:  # this is the tool for machines on which nothing goes as it should
        remedy = "please report it with the rest of this table"
        return [Diagnosis(subject, "problem", f"could not be looked at: {type(error).__name__}: {error}", remedy)]
