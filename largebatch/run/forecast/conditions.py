"""What time and memory of a run depend on besides its batch: runs that differ in none of it predict each other."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from largebatch.run.config.environment import comparable
from largebatch.run.config.schema import TrainConfig
from largebatch.run.prepare import Prepared

OF_MACHINE = ("device", "threads", "ranks")
OF_COST = ("model", "data", "loss", "optimizer", "arithmetic", "measuring", *OF_MACHINE)
"""Conditions of time and memory."""
OF_RESULT = ("trajectory",)
"""Condition of the results: everything but the seed."""

SEED = "seed"
"""Is kept beside the conditions, and is none: runs of one seed are one draw, however often it was repeated."""
_OTHER = ("seed", "limit", "label_noise", "timeout_s", "validation", "train_plain", "order", "stream")
_NOT_OF_RESULT = ("run", "logger", "launcher", "cost", "seed", "observers", "resume")
_ARITHMETIC = ("precision", "batch_norm", "sam", "ema", "parameters")
_IN_STEPS = ("metrics", "layers", "noise_scale", "communication", "ledger", "replicas", "recompute", "profile")
_LONGEST = 16  # letters of a hash


def conditions(prepared: Prepared) -> dict[str, str]:
    """Name of a condition -> its value, shortened by a hash where it is long. Every rank gets the same but `device`."""
    config, world_size = prepared.config, prepared.numbers.plan.world_size
    plain: dict[str, Any] = comparable(prepared.public, config.model_dump())
    arithmetic = {key: _coarse(plain[key]) for key in _ARITHMETIC}
    arithmetic |= {"decisions": prepared.decisions.values(), "compute": config.precision.compute}
    arithmetic |= {"reduction": config.batch.reduction, "guard": config.guard.policy}
    arithmetic |= {"clips": config.clip_norm is not None}
    result = {key: value for key, value in plain.items() if key not in _NOT_OF_RESULT}
    result |= {"batch": {**plain["batch"], "max_micro": None}, "content": prepared.content}
    return {
        "model": _hash({key: value for key, value in plain["model"].items() if key != "weights"}),
        "data": _hash(_coarse(plain["data"])),
        "loss": _hash(plain["loss"]),
        "optimizer": _hash(_coarse(plain["optimizer"])),
        "arithmetic": _hash(arithmetic),
        "measuring": _hash(_measuring(config)),
        "device": prepared.decisions.device.name if prepared.decisions.device.is_gpu else _processor(),
        "threads": str(torch.get_num_threads()),
        "ranks": _ranks(world_size),
        "trajectory": _hash(result),
        SEED: str(config.seed),
    }


def _measuring(config: TrainConfig) -> list[Any]:
    """What a step computes besides the training, and what a process holds: memory of a CPU is that of all of it."""
    watched, logger = config.observers, config.logger
    in_steps = [getattr(watched, name).model_dump() for name in _IN_STEPS]
    rare = None if watched.sharpness.every is None else watched.sharpness.model_dump()
    held = [watched.evaluation.micro, watched.checkpoint.background, rare]
    told = [logger.wandb.mode, logger.tensorboard, logger.mlflow.enabled, logger.trackio.enabled]
    return [in_steps, held, told, _coarse(watched.own)]


def _ranks(world_size: int) -> str:
    """Their number, and how many of them share a node, where the launcher tells: the links of a node are faster.

    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, LOCAL_WORLD_SIZE="4"):
    ...     _ranks(4), _ranks(8)
    ('4', '8, 4 per node')
    """
    per_node = os.environ.get("LOCAL_WORLD_SIZE", "")
    is_spread = per_node.isdecimal() and 0 < int(per_node) < world_size
    return f"{world_size}, {int(per_node)} per node" if is_spread else str(world_size)


def _coarse(value: Any) -> Any:
    """Fractions as zero or not, as a momentum counts for time; seeds and sizes of sets left out."""
    if isinstance(value, Mapping):
        return {key: _coarse(part) for key, part in value.items() if key not in _OTHER}
    if isinstance(value, (list, tuple)):
        return [_coarse(part) for part in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return value != 0 if isinstance(value, float) or value == 0 else value


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_LONGEST]


@cache
def _processor() -> str:
    """Kind and number of cores. Not the machine's name, which may be private, and is another one in every container."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{os.cpu_count()} x {model or platform.processor() or platform.machine()}"
