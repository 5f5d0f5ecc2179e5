"""Checks of the environment variables that a launcher sets. No torch, no process group."""

from __future__ import annotations

import json
from collections.abc import Mapping

_REMEDY = "Start with torchrun or accelerate launch, or unset it."
# Our names of precisions -> accelerate's.
_ACCELERATE_NAMES = {"bf16": "bf16", "fp16": "fp16"}

# Process managers that set a process count but not the variables that torch needs: name, variable of the count,
# variable of the index, and the command that starts one torchrun per node.
_STARTERS = (
    ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "mpirun --map-by ppr:1:node"),
    ("MVAPICH", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "mpirun_rsh -np NODES"),
    ("Horovod", "HOROVOD_SIZE", "HOROVOD_RANK", ""),
    ("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK", "jsrun --rs_per_host 1 --tasks_per_rs 1"),
    ("Flux", "FLUX_JOB_SIZE", "FLUX_TASK_RANK", "flux run --tasks-per-node 1"),
    ("MPI", "PMI_SIZE", "PMI_RANK", "mpiexec -ppn 1"),
    ("SageMaker", "SM_HOSTS", "SM_CURRENT_HOST", ""),
    ("Kubeflow Trainer", "PET_NNODES", "PET_NODE_RANK", ""),
    ("SkyPilot", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", ""),
    ("dstack", "DSTACK_NODES_NUM", "DSTACK_NODE_RANK", ""),
    ("AWS Batch", "AWS_BATCH_JOB_NUM_NODES", "AWS_BATCH_JOB_NODE_INDEX", ""),
)


def start_problems(environ: Mapping[str, str], *, num_processes: int | None) -> list[str]:
    """Whether this is one of several processes that no launcher made ranks of one job: each would train the whole run.

    Report it before any other problem, since the others are then not about the intended run.

    Args:
        environ: environment variables, with or without those of a launcher or process manager.
        num_processes: the number of processes that the config expects; 1 states that copies are intended.
    """
    if not environ.keys() & {"WORLD_SIZE", "RANK", "LOCAL_RANK"}:
        return [] if num_processes == 1 else _copies(environ)
    missing = [
        (name, other)
        for name, other in (
            ("WORLD_SIZE", "RANK"),
            ("RANK", "WORLD_SIZE"),
            ("RANK", "LOCAL_RANK"),
            ("LOCAL_RANK", "RANK"),  # LOCAL_RANK alone makes accelerate start a process group
        )
        if name in environ and other not in environ
    ]
    if missing == [("RANK", "LOCAL_RANK")] and (environ["WORLD_SIZE"], environ["RANK"]) == ("1", "0"):
        return []  # a job of one pod
    if missing == [("RANK", "LOCAL_RANK")] and environ.get("MASTER_ADDR") and environ.get("MASTER_PORT"):
        return [
            "RANK is set but LOCAL_RANK is not, as in a pod of Kubeflow's PyTorchJob or of Vertex AI: there RANK "
            "numbers pods, and a pod may hold several ranks. Start torchrun in each: `torchrun --nnodes $WORLD_SIZE "
            "--node-rank $RANK --nproc-per-node GPUS --master-addr $MASTER_ADDR --master-port $MASTER_PORT "
            "-m largebatch train ...`, or set LOCAL_RANK=0 where a pod is one rank."
        ]
    return [
        f"{name} is set but {other} is not: only part of a launcher's environment is here. {_REMEDY}"
        for name, other in missing
    ]


def restart_problem(environ: Mapping[str, str], *, resume: str) -> str | None:
    """Refuse a torchrun restart that would train from scratch: an unnamed run folder cannot be found again."""
    count = _number(environ, "TORCHELASTIC_RESTART_COUNT")
    if resume != "none" or count == 0:
        return None
    return (
        f"torchrun has restarted this job (restart {count} of {environ.get('TORCHELASTIC_MAX_RESTARTS', '?')}), and "
        "resume=none would train from scratch again. Start it with run.dir=FOLDER resume=auto, so that a restart "
        "resumes by itself. To resume the failed attempt now: run.dir=ITS_FOLDER resume=auto."
    )


def restart_note(environ: Mapping[str, str], *, resume: str) -> str | None:
    """Warn before the first failure that a torchrun restart would train from scratch."""
    most = _number(environ, "TORCHELASTIC_MAX_RESTARTS")
    if resume != "none" or most == 0:
        return None
    return (
        f"torchrun would restart this job if it fails (--max-restarts={most}), but resume=none would train from "
        "scratch: set run.dir=FOLDER resume=auto"
    )


def _copies(environ: Mapping[str, str]) -> list[str]:
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    started = [("srun", tasks, "srun --ntasks-per-node=1", _slurm_tasks(environ, tasks))]
    started += [(name, size, alone, _count(environ, size, index)) for name, size, index, alone in _STARTERS]
    for name, variable, alone, count in started:
        if count > 1:
            several = f"`{alone} torchrun" if alone else "on each of them `torchrun"
            return [
                f"{name} started {count} processes ({variable}={environ[variable]}), but RANK is not set, so they "
                "are no ranks of one job: each would train the whole run by itself. On one machine use `torchrun "
                "--standalone "
                f"--nproc-per-node {count} -m largebatch train ...`; on several {several} --nnodes NODES "
                "--nproc-per-node GPUS --rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500 -m largebatch train ...`. "
                "For independent runs set launcher.num_processes=1."
            ]
    return []


def _slurm_tasks(environ: Mapping[str, str], variable: str) -> int:
    """Tasks of this Slurm step: none in a shell of salloc, one in a batch script, however many are allocated."""
    is_script = environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_NUM_TASKS" not in environ
    if "SLURM_PROCID" not in environ or (is_script and environ["SLURM_PROCID"] == "0"):
        return 1
    return _whole(environ.get(variable, ""))


def _count(environ: Mapping[str, str], size: str, index: str) -> int:
    text = environ.get(size, "")
    if size == "FLUX_JOB_SIZE" and index not in environ:  # an interactive shell of an allocation
        return 1
    return _length(text) if text.startswith("[") else _whole(text)


def _number(environ: Mapping[str, str], variable: str) -> int:
    """A count of restarts; 0 if the variable is unset or no number."""
    text = environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 1


def _length(text: str) -> int:
    try:
        return len(json.loads(text))
    except ValueError:
        return 1


def launcher_problems(environ: Mapping[str, str], *, precision: str, num_processes: int | None) -> list[str]:
    """Problems of the launcher's environment, one message each, found before any process group exists.

    Args:
        environ: environment variables, with or without those of torchrun or accelerate launch.
        precision: the precision that the config sets.
        num_processes: the number of processes that the config expects; None accepts any.
    """
    problems = start_problems(environ, num_processes=num_processes)
    numbers = {}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        text = environ.get(name)
        if text is not None and not text.isdecimal():
            problems.append(f"{name}={text}: not an integer. {_REMEDY}")
        elif text is not None:
            numbers[name] = int(text)
    world_size, rank = numbers.get("WORLD_SIZE", 1), numbers.get("RANK", 0)
    if numbers.keys() >= {"WORLD_SIZE", "RANK"} and rank >= world_size:
        problems.append(f"RANK={rank} with WORLD_SIZE={world_size}: ranks count from 0. {_REMEDY}")
    if world_size > 1:
        problems += _meeting_point_problems(environ)
    if num_processes is not None and num_processes != world_size:
        problems.append(
            f"launcher.num_processes={num_processes}, but {world_size} started. "
            f"Start with `torchrun --standalone --nproc-per-node {num_processes} -m largebatch train ...`."
        )
    return problems + _accelerate_problems(environ, precision)


def _meeting_point_problems(environ: Mapping[str, str]) -> list[str]:
    """Check the rendezvous address: without one torch hangs or fails while it starts the process group."""
    problems = [
        f"{name} is not set, and WORLD_SIZE={environ['WORLD_SIZE']}: the ranks cannot find each other. {_REMEDY}"
        for name in ("MASTER_ADDR", "MASTER_PORT")
        if not environ.get(name)
    ]
    port = environ.get("MASTER_PORT") or "0"
    if not port.isdecimal() or int(port) > 65535:
        problems.append(f"MASTER_PORT={port}: a port is an integer up to 65535. {_REMEDY}")
    return problems


def _accelerate_problems(environ: Mapping[str, str], precision: str) -> list[str]:
    """Settings of `accelerate config` that would silently override ours."""
    problems = []
    accumulation = environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        problems.append(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={accumulation}: accelerate would divide the loss a second time. "
            "Set batch.total and batch.max_micro instead, and leave accelerate's accumulation at 1."
        )
    mixed = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", _ACCELERATE_NAMES.get(precision)):
        problems.append(
            f"ACCELERATE_MIXED_PRECISION={mixed} contradicts precision.compute={precision}. "
            "Set precision=..., and leave accelerate's at `no`."
        )
    problems += [
        f"ACCELERATE_USE_{name}: this plug-in takes over the optimizer step, so the global batch would no longer be "
        "exact. Choose plain multi-GPU in `accelerate config`."
        for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
        if environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("1", "true")
    ]
    if environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("no", ""):
        problems.append("ACCELERATE_DYNAMO_BACKEND is set: use precision.compile=true, so that the run records it.")
    return problems
