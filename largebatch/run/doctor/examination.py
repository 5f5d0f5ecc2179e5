"""Runs all checks of `largebatch doctor`: those of a run's start, and those that a start cannot make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from largebatch.distributed.launcher_environment import launcher_problems
from largebatch.run.checks.machine import existing_folder, folder_problems, machine_problems
from largebatch.run.config.schema import TrainConfig
from largebatch.run.doctor import connections, machine
from largebatch.run.doctor.finding import Finding
from largebatch.run.precision.device import Device
from largebatch.run.precision.number_format import settled

Check = Callable[[], Iterable[Finding]]


def examine(config: TrainConfig, environ: Mapping[str, str], *, network: bool) -> list[Finding]:
    """All findings about this machine, in the order in which a run needs its parts.

    Args:
        config: of a run that would start here.
        environ: of the job.
        network: whether servers may be contacted.
    """
    checks: dict[str, Check] = {
        "versions": machine.versions,
        "devices": machine.devices,
        "cores": partial(machine.cores, environ),
        "memory": machine.memory,
        "open files": partial(machine.open_files, config.launcher.num_processes or int(environ.get("WORLD_SIZE", "1"))),
        "run": partial(start_of_a_run, config, environ),
        "disk": partial(machine.disk, existing_folder(config).absolute()),
        "ports": partial(connections.ports, environ),
        "flight recorder": partial(connections.flight_recorder, environ),
        "two processes": connections.meeting,
        "W&B": partial(connections.wandb_server, environ, network=network),
    }
    return [found for subject, check in checks.items() for found in outcome(subject, check)]


def outcome(subject: str, check: Check) -> list[Finding]:
    """The findings of a check; a check that raises becomes a finding, and the others still run."""
    try:
        return list(check())
    except Exception as error:  # doctor runs on broken machines, so a check itself may fail
        fact = f"could not be checked: {type(error).__name__}: {error}. Report it with the rest of this table."
        return [Finding(subject, "problem", fact)]


def start_of_a_run(config: TrainConfig, environ: Mapping[str, str]) -> Iterator[Finding]:
    """The checks of `largebatch train` before it builds anything: launcher, machine, trackers, run folder."""
    device = Device.own()
    config = settled(config, device)
    precision, expected = config.precision.compute, config.launcher.num_processes
    parts = {
        "launcher": launcher_problems(environ, precision=precision, num_processes=expected),
        "settings": machine_problems(config, environ, device),
        "run folder": folder_problems(config),
    }
    started = {name: environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in environ}
    found = {"launcher": ", ".join(f"{name}={value}" for name, value in started.items()) or "none: one process"}
    for subject, problems in parts.items():
        yield from (Finding(subject, "problem", problem) for problem in problems)
        if not problems:
            yield Finding(subject, "ok", found.get(subject, "as a run needs it"))
    if "SLURM_JOB_ID" in environ and not started:
        fact = f"job {environ['SLURM_JOB_ID']} has no launcher in it: every task would train by itself. "
        yield Finding("Slurm", "note", f"{fact}Start it with srun torchrun, as launch/slurm.sbatch does.")
