"""Checks that the machine, the run folder and the disk can hold the run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from largebatch.distributed.kernels import REPEATING_WORKSPACES, WORKSPACE
from largebatch.optim.kernels.triton_steps import has_triton
from largebatch.records.run_folder import RunFolder
from largebatch.records.trackers import PUBLIC_SERVER, key_source, mode_of, naming_problems
from largebatch.run.checks.memory import state_bytes, state_of
from largebatch.run.config.schema import TrainConfig
from largebatch.run.precision.device import Device

_AMPLE = 8  # free bytes per byte of weights; the state of an optimizer is about twice as large as the weights


def machine_problems(config: TrainConfig, environ: Mapping[str, str], device: Device) -> list[str]:
    """Settings that this machine, or the rank's device, cannot fulfil."""
    return (
        _precision_problems(config, environ, device)
        + _optimizer_problems(config, device)
        + _process_problems(config, environ)
        + _communication_problems(config, environ)
        + _logger_problems(config, environ)
    )


def _precision_problems(config: TrainConfig, environ: Mapping[str, str], device: Device) -> list[str]:
    problems = []
    precision, has_gpu = config.precision, device.is_gpu
    if precision.compute == "fp16" and not has_gpu:
        problems.append("precision.compute=fp16: needs a GPU; on a CPU it would silently be fp32. Use bf16 or fp32.")
    if precision.compute == "bf16" and has_gpu and not device.has_bf16:
        problems.append(f"precision.compute=bf16: {device.name} has no bfloat16. Use fp16 or fp32.")
    workspace = environ.get(WORKSPACE)
    if precision.deterministic and has_gpu and workspace not in (None, *REPEATING_WORKSPACES):
        problems.append(
            f"{WORKSPACE}={workspace}: with it cuBLAS may give other bits each time, and this run needs the same ones "
            f"(precision.deterministic). Unset it, or set it to {' or '.join(REPEATING_WORKSPACES)}."
        )
    if precision.tf32 and not has_gpu:
        problems.append("precision.tf32=true: has no effect without a GPU. Use null.")
    if precision.compile and not has_gpu and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        how = "true" if precision.compile is True else precision.compile
        problems.append(f"precision.compile={how}: torch.compile needs a C++ compiler here. Install g++.")
    if isinstance(precision.activation_checkpointing, str):
        try:
            re.compile(precision.activation_checkpointing)
        except re.error as error:
            problems.append(f"precision.activation_checkpointing={precision.activation_checkpointing}: {error}.")
    return problems


def _optimizer_problems(config: TrainConfig, device: Device) -> list[str]:
    is_ours = str(config.optimizer.get("_target_")).startswith("largebatch.")
    if is_ours and config.optimizer.get("compile") is True and device.is_gpu and not has_triton():
        return ["optimizer.compile=true: its kernels for a GPU need Triton, which is missing. Run pip install triton."]
    return []


def _process_problems(config: TrainConfig, environ: Mapping[str, str]) -> list[str]:
    problems = []
    local_rank = environ.get("LOCAL_RANK", "0")
    if torch.cuda.is_available() and local_rank.isdigit() and int(local_rank) >= torch.cuda.device_count():
        problems.append(
            f"LOCAL_RANK={local_rank}: this machine has {torch.cuda.device_count()} GPUs. Start one process per GPU."
        )
    if config.data.num_workers > 4 * (os.cpu_count() or 1):
        problems.append(
            f"data.num_workers={config.data.num_workers}: starts so many workers per rank, and this machine has "
            f"{os.cpu_count()} cores. Use at most {4 * (os.cpu_count() or 1)}."
        )
    return problems


def _communication_problems(config: TrainConfig, environ: Mapping[str, str]) -> list[str]:
    every, started = config.observers.communication.every, environ.get("WORLD_SIZE", "1")
    if every is None or not started.isdecimal():  # a WORLD_SIZE that is no number is reported with the launcher
        return []
    return communication_problems(world_size=int(started), what=f"observers.communication.every={every}")


def communication_problems(*, world_size: int, what: str) -> list[str]:
    """The error of `what`, a setting that measures communication, if there is only one process."""
    if world_size > 1:
        return []
    return [f"{what}: one process sends nothing. Start 2 or more with torchrun or accelerate launch, or leave it out."]


def _logger_problems(config: TrainConfig, environ: Mapping[str, str]) -> list[str]:
    problems = []
    server = environ.get("WANDB_BASE_URL") or PUBLIC_SERVER
    try:
        mode = mode_of(config.logger.wandb.mode, environ)
    except ValueError as error:
        problems.append(str(error))
    else:
        if mode == "online" and key_source(server) is None:
            source = "logger.wandb.mode=online" if config.logger.wandb.mode == "online" else "WANDB_MODE=online"
            problems.append(f"{source}: there is no W&B key. Run `wandb login`, set WANDB_API_KEY, or use offline.")
        if mode != "disabled":
            problems += naming_problems(config.logger.wandb.model_dump(), environ)
    for asked, key, package, install in (
        (config.logger.tensorboard, "tensorboard", "tensorboard", '"largebatch[tensorboard]"'),
        (config.logger.mlflow.enabled, "mlflow.enabled", "mlflow", "mlflow"),
        (config.logger.trackio.enabled, "trackio.enabled", "trackio", "trackio"),
    ):
        if asked and importlib.util.find_spec(package) is None:
            problems.append(f"logger.{key}=true: the package {package} is missing. Run `pip install {install}`.")
    if config.logger.wandb.artifacts == "best" and config.observers.checkpoint.best_by is None:
        problems.append(
            "logger.wandb.artifacts=best: no checkpoint is the best one, because observers.checkpoint.best_by is null. "
            "Set it, or choose last."
        )
    return problems


def folder_problems(config: TrainConfig) -> list[str]:
    """Errors of the run folder: the run cannot be written to it, or continued from it."""
    problems = []
    folder = None if config.run.dir is None else RunFolder(Path(config.run.dir))
    if config.resume == "auto" and folder is None:
        problems.append("resume=auto: looks into run.dir, which is not set. Give run.dir=FOLDER.")
    if config.resume == "none" and config.resume_allow and not config.cooldown.is_used:
        problems.append(
            f"resume_allow={config.resume_allow}: has no effect on a new run. Set resume=auto, or leave it empty."
        )
    if config.resume not in ("auto", "none") and not Path(config.resume).is_dir():
        problems.append(f"resume={config.resume}: {_no_folder(config.resume)}")
    if folder is not None and config.resume == "none" and folder.holds_a_run:
        problems.append(
            f"run.dir={config.run.dir}: already holds a run. Continue it with resume=auto, or choose another folder."
        )
    if folder is not None and folder.holds_a_run and _is_of_another(folder.path, config.resume):
        problems.append(
            f"run.dir={config.run.dir}: already holds a run, and resume={config.resume} is another one: their "
            "records would mix. Continue this run with resume=auto, or the other one in a new run.dir."
        )
    if (earlier := config.run.predict_from) not in ("auto", "none") and not Path(earlier).is_dir():
        problems.append(
            f"run.predict_from={earlier}: is no folder. Name one that holds folders of runs, or use auto or none."
        )
    existing = existing_folder(config)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        problems.append(f"run folder: {existing.resolve()} cannot be written to. Choose run.dir or run.root elsewhere.")
    return problems


def _no_folder(path: str) -> str:
    if not Path(path).exists():
        return "there is no such folder. Use auto, none, or the path of a run."
    return (
        "is a file, and a run goes on from the folder of a run or of a checkpoint, which has its position and "
        f"optimizer, too. To start a new run from weights alone: model.weights={path}"
    )


def _is_of_another(folder: Path, resume: str) -> bool:
    source = Path(resume).resolve()
    return resume not in ("auto", "none") and folder.resolve() not in (source, *source.parents)


def checkpoint_problems(config: TrainConfig, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """An error if weights and optimizer state are larger than the free space of the disk."""
    weights = sum(one.nbytes for one in state_of(model).values() if isinstance(one, torch.Tensor))
    try:
        folder = existing_folder(config).resolve()
        usage = shutil.disk_usage(folder)
    except OSError:  # reported as an error of the folder
        return []
    # Measure the optimizer state only if it could matter. Some network file systems report a total of 0.
    if usage.free >= _AMPLE * weights or not usage.total:
        return []
    state = state_bytes(optimizer)
    if usage.free >= weights + state:
        return []
    return [
        f"run folder: {folder} has {usage.free:,} bytes left, and a checkpoint takes {weights + state:,}: "
        f"{weights:,} of weights, {state:,} of the optimizer. Make room, or choose run.dir or run.root elsewhere."
    ]


def existing_folder(config: TrainConfig) -> Path:
    """The deepest existing folder on the path of the run folder."""
    existing = Path(config.run.root if config.run.dir is None else config.run.dir)
    while not existing.exists():
        existing = existing.parent
    return existing
