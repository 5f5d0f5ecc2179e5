"""What the launcher's environment says about the job, and what is wrong with it. No torch, no process group."""

from __future__ import annotations

from collections.abc import Mapping

_REMEDY = "Start with torchrun or accelerate launch, or unset it."
# What accelerate calls a precision of ours.
_ACCELERATE_NAMES = {"bf16": "bf16", "fp16": "fp16"}


def launcher_problems(environ: Mapping[str, str], *, precision: str, num_processes: int | None) -> list[str]:
    """What is wrong with the launcher's environment, one sentence each, before any process group exists.

    Args:
        environ: environment variables as set by torchrun, accelerate launch, or nobody.
        precision: the precision that the config asks for.
        num_processes: the number of processes that the config expects; None: whatever was started.
    """
    problems = [
        f"{name} is set but {other} is not: the environment of a launcher came through in part. {_REMEDY}"
        for name, other in (
            ("WORLD_SIZE", "RANK"),
            ("RANK", "WORLD_SIZE"),
            ("RANK", "LOCAL_RANK"),
            ("LOCAL_RANK", "RANK"),  # alone, it is enough for accelerate to start a process group
        )
        if name in environ and other not in environ
    ]
    numbers = {}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        text = environ.get(name)
        if text is not None and not text.isdecimal():
            problems.append(f"{name}={text}: not a whole number. {_REMEDY}")
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
    """Where the ranks meet: without it torch waits or fails inside the start of the process group."""
    problems = [
        f"{name} is not set with WORLD_SIZE={environ['WORLD_SIZE']}: the ranks would not find each other. {_REMEDY}"
        for name in ("MASTER_ADDR", "MASTER_PORT")
        if not environ.get(name)
    ]
    port = environ.get("MASTER_PORT") or "0"
    if not port.isdecimal() or int(port) > 65535:
        problems.append(f"MASTER_PORT={port}: a port is a number up to 65535. {_REMEDY}")
    return problems


def _accelerate_problems(environ: Mapping[str, str], precision: str) -> list[str]:
    """Settings of `accelerate config` that would silently override ours."""
    problems = []
    accumulation = environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        problems.append(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={accumulation}: accelerate would divide the loss once more. "
            "Set batch.total and batch.max_micro instead, and leave accelerate's accumulation at 1."
        )
    mixed = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", _ACCELERATE_NAMES.get(precision)):
        problems.append(
            f"ACCELERATE_MIXED_PRECISION={mixed} contradicts precision.compute={precision}. "
            "Choose with precision=..., and leave accelerate's at `no`."
        )
    problems += [
        f"ACCELERATE_USE_{name}: that plug-in takes over the optimizer step, so the global batch would no longer be "
        "exact. Choose plain multi-GPU in `accelerate config`."
        for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
        if environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("1", "true")
    ]
    if environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("no", ""):
        problems.append("ACCELERATE_DYNAMO_BACKEND is set: use precision.compile=true, so that the run records it.")
    return problems
