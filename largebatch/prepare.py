"""Builds and tries everything that needs no process group, so that every rank fails alike, early, with one report."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig
from torch import nn

from largebatch.batch import BatchPlan
from largebatch.config import ConfigError, parse_config, public_values
from largebatch.data import Augmentation, FirstSamples, MicroBatchLoader
from largebatch.derive import Derived, derive
from largebatch.gradients import forward
from largebatch.keyed import stream_key
from largebatch.launcher import launcher_problems
from largebatch.losses import Loss
from largebatch.models.checkpointing import checkpoint_activations
from largebatch.optim import parameter_groups
from largebatch.order import SampleOrder
from largebatch.run_folder import RunFolder
from largebatch.schema import TrainConfig
from largebatch.targets import TargetError, check_arguments, make
from largebatch.trackers import key_source

T = TypeVar("T")
_LOSS_MEMBERS = ("unit", "fixed_units", "loss_per_sample", "units_per_sample", "correct_per_sample")


@dataclass(frozen=True)
class Prepared:
    """A run that is known to work on one sample: what `build` needs to start it. `public` is the config for records."""

    config: TrainConfig
    public: dict[str, Any]
    derived: Derived
    train: Any
    train_plain: Any
    validation: Any
    augment: Augmentation | None
    model: nn.Module
    loss: Loss
    measured_loss: Loss
    optimizer: torch.optim.Optimizer


class _Report:
    """Collects errors, so that one run of the command shows all of them."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def attempt(self, key: str, function: Callable[[], T]) -> T | None:
        try:
            return function()
        except ConfigError as error:
            self.errors += error.errors
        except TargetError as error:
            self.errors.append(str(error))
        except (ValueError, OSError) as error:
            self.errors.append(f"{key}: {error}")
        return None

    def raise_if_any(self) -> None:
        if self.errors:
            raise ConfigError(self.errors)


def prepare(composed: DictConfig, environ: Mapping[str, str]) -> Prepared:
    """Check a composed config, build data, model, loss and optimizer, and try one sample.

    Raises:
        ConfigError: with everything that was found.
    """
    config = parse_config(composed)
    report = _Report()
    report.errors += launcher_problems(
        environ, precision=config.precision.compute, num_processes=config.launcher.num_processes
    )
    report.errors += _machine_problems(config, environ)
    report.errors += report.attempt("run folder", lambda: _folder_problems(config)) or []

    train = report.attempt("data.train", lambda: _limited(make("data.train", config.data.train), config.data.limit))
    plain = config.data.train_plain
    train_plain = train
    if plain is not None:
        train_plain = report.attempt("data.train_plain", lambda: _limited(make("data.train_plain", plain), None))
    validation = report.attempt("data.validation", lambda: _not_empty(make("data.validation", config.data.validation)))
    loss = report.attempt("loss", lambda: _loss(config))
    # On the CPU and from a key of its own, so that every rank of every topology draws the same weights.
    torch.manual_seed(stream_key(config.seed, "initialisation"))
    model = report.attempt("model", lambda: _model(config))
    optimizer = None if model is None else report.attempt("optimizer", lambda: build_optimizer(config, model))
    augment = report.attempt("data.augment", lambda: _augmentation(config))
    derived = None
    if train is not None and not any("WORLD_SIZE" in error for error in report.errors):
        world_size = int(environ.get("WORLD_SIZE", "1"))
        derived = report.attempt("batch", lambda: derive(config, num_samples=len(train), world_size=world_size))
    if train is not None and model is not None and loss is not None and not report.errors:
        report.attempt("model and data", lambda: _try_one_step(config, train, augment, model, loss))
    report.raise_if_any()
    assert derived is not None
    assert model is not None
    assert loss is not None
    assert optimizer is not None
    return Prepared(
        config=config,
        public=public_values(composed),
        derived=derived,
        train=train,
        train_plain=train_plain,
        validation=validation,
        augment=augment,
        model=model,
        loss=loss,
        measured_loss=_without_smoothing(loss),
        optimizer=optimizer,
    )


def _limited(dataset: Any, limit: int | None) -> Any:
    _not_empty(dataset)
    if limit is None:
        return dataset
    return FirstSamples(dataset, limit)


def _not_empty(dataset: Any) -> Any:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(f"{type(dataset).__name__} has no length or no items: a map-style data set is needed.")
    if len(dataset) == 0:
        raise ValueError("the data set is empty. Check its path and its split.")
    return dataset


def _model(config: TrainConfig) -> nn.Module:
    model = make("model", config.model)
    if not isinstance(model, nn.Module):
        raise TargetError(f"model._target_={config.model['_target_']}: made a {type(model).__name__}, not a Module.")
    pattern = config.precision.activation_checkpointing
    if pattern:
        checkpoint_activations(model, *([] if pattern is True else [pattern]))
    return model


def _loss(config: TrainConfig) -> Loss:
    loss: Loss = make("loss", config.loss)
    absent = [name for name in _LOSS_MEMBERS if not hasattr(loss, name)]
    if absent:
        raise TargetError(
            f"loss._target_={config.loss['_target_']}: a {type(loss).__name__} has no {', '.join(absent)}. Choose a "
            "class of largebatch.losses, or write one with what `largebatch.losses.Loss` asks for."
        )
    return loss


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the config over the parameter groups of `model`; its rate is set by the loop."""
    node = dict(config.optimizer)
    if "lr" in node:
        raise TargetError(
            f"optimizer.lr={node['lr']}: the rate is derived from scaling.base_lr, scaling.base_batch_size and "
            "scaling.rule. Set those."
        )
    check_arguments("optimizer", node, supplied=("params", "lr"))
    weight_decay = node.pop("weight_decay", 0.0)
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, (int, float)):
        raise TargetError(f"optimizer.weight_decay={weight_decay}: must be a number.")
    groups = parameter_groups(
        model,
        weight_decay=weight_decay,
        exclude_from_decay=config.parameters.exclude_from_decay,
        exclude_from_adaptation=config.parameters.exclude_from_adaptation,
    )
    optimizer = make("optimizer", node, params=groups, lr=config.scaling.base_lr)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TargetError(f"optimizer._target_={node['_target_']}: made a {type(optimizer).__name__}, no Optimizer.")
    return optimizer


def _augmentation(config: TrainConfig) -> Augmentation | None:
    augment = config.data.augment
    if not (augment.crop_padding or augment.flip or augment.cutout):
        return None
    return Augmentation(config.seed, crop_padding=augment.crop_padding, flip=augment.flip, cutout=augment.cutout)


def _without_smoothing(loss: Any) -> Any:
    """Smoothing belongs to training; both sides of the gap are measured without."""
    return dataclasses.replace(loss, label_smoothing=0.0) if getattr(loss, "label_smoothing", 0.0) else loss


def _try_one_step(config: TrainConfig, train: Any, augment: Any, model: nn.Module, loss: Loss) -> None:
    """Forward and backward of one sample on the CPU: shapes, labels, and parameters that get no gradient."""
    plan = BatchPlan.solve(global_batch_size=1, world_size=1)
    # One worker shows whether items load. A set in memory refuses workers: it should name their real number.
    loader = MicroBatchLoader(
        train,
        SampleOrder(len(train), config.seed),
        plan,
        0,
        augment=augment,
        num_workers=config.data.num_workers if hasattr(train, "fetch") else min(config.data.num_workers, 1),
        seed=config.seed,
        timeout_s=config.data.timeout_s,
    )
    batch = next(loader.micro_batches(0, 1))
    model.eval()  # batch norm needs no second sample, and its statistics stay as they are
    try:
        value = loss.loss_per_sample(forward(model, batch.inputs), batch.targets).sum()
        value.backward()
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        inputs = batch.inputs if isinstance(batch.inputs, dict) else {"inputs": batch.inputs}
        shapes = ", ".join(f"{name} {list(part.shape)}" for name, part in (inputs | {"targets": batch.targets}).items())
        raise ValueError(
            f"one sample ({shapes}) failed with {type(error).__name__}: {(str(error).splitlines() or [''])[0]}. "
            "Do the model's inputs and outputs and the labels fit the data?"
        ) from error
    unused = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    model.zero_grad()
    model.train()
    if unused:
        raise ValueError(
            f"{len(unused)} parameters get no gradient, e.g. {', '.join(unused[:3])}: the all-reduce would wait for "
            "them. Remove them, or freeze them with requires_grad=False."
        )


def _machine_problems(config: TrainConfig, environ: Mapping[str, str]) -> list[str]:
    """Settings that this machine cannot fulfil."""
    problems = []
    precision, has_gpu = config.precision, torch.cuda.is_available()
    if precision.compute == "fp16" and not has_gpu:
        problems.append("precision.compute=fp16: needs a GPU; on a CPU it would silently be fp32. Use bf16 or fp32.")
    if precision.compute == "bf16" and has_gpu and not torch.cuda.is_bf16_supported():
        problems.append("precision.compute=bf16: this GPU has no bfloat16. Use fp16 or fp32.")
    if precision.tf32 and not has_gpu:
        problems.append("precision.tf32=true: has no effect without a GPU. Leave it false.")
    if precision.compile and not has_gpu and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        problems.append("precision.compile=true: torch.compile needs a C++ compiler here. Install g++.")
    if isinstance(precision.activation_checkpointing, str):
        try:
            re.compile(precision.activation_checkpointing)
        except re.error as error:
            problems.append(f"precision.activation_checkpointing={precision.activation_checkpointing}: {error}.")
    local_rank = environ.get("LOCAL_RANK", "0")
    if has_gpu and local_rank.isdigit() and int(local_rank) >= torch.cuda.device_count():
        problems.append(
            f"LOCAL_RANK={local_rank}: this machine has {torch.cuda.device_count()} GPUs. Start one process per GPU."
        )
    if config.data.num_workers > 4 * (os.cpu_count() or 1):
        problems.append(
            f"data.num_workers={config.data.num_workers}: per rank, on {os.cpu_count()} cores. Use fewer workers."
        )
    if config.logger.wandb.mode == "online" and key_source() is None:
        problems.append(
            "logger.wandb.mode=online: there is no W&B key. Run `wandb login`, set WANDB_API_KEY, or use offline."
        )
    return problems


def _folder_problems(config: TrainConfig) -> list[str]:
    problems = []
    folder = None if config.run.dir is None else RunFolder(Path(config.run.dir))
    if config.resume == "auto" and folder is None:
        problems.append("resume=auto: looks into run.dir, which is not set. Give run.dir=FOLDER.")
    if config.resume not in ("auto", "none") and not Path(config.resume).exists():
        problems.append(f"resume={config.resume}: there is no such folder. Use auto, none, or the path of a run.")
    if folder is not None and config.resume == "none" and folder.holds_a_run:
        problems.append(
            f"run.dir={config.run.dir}: already holds a run. Continue it with resume=auto, or choose another folder."
        )
    existing = folder.path if folder is not None else Path(config.run.root)
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        problems.append(f"run folder: {existing.resolve()} cannot be written to. Choose run.dir or run.root elsewhere.")
    return problems
