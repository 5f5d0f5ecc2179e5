"""Makes the model and the optimizer that a run starts from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from largebatch.batch.order import SampleOrder
from largebatch.batch.random_keys import stream_key
from largebatch.data import evaluation_batches
from largebatch.distributed.generators import preserved_generators, seed_generators
from largebatch.gradient.accumulation import forward
from largebatch.gradient.snapshots import is_expanded
from largebatch.models.modes import evaluating, train_mode
from largebatch.optim import keep_lr_ratios, lr_factors, parameter_groups
from largebatch.optim.uncompiled import without_compiler
from largebatch.run.checks.memory import require_memory_for_weights
from largebatch.run.config.model_node import arguments_of_model
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import TrainConfig
from largebatch.run.config.targets import TargetError, check_arguments, make
from largebatch.run.model_settings import as_configured, noise_scale_geometry
from largebatch.run.precision.device import Device
from largebatch.run.precision.speed import compiled_optimizer, fused

_TRIED_TO_SKIP = 8


def initial_model(config: TrainConfig, seed: int, dataset: Any) -> nn.Module:
    """The model with the weights that a run of `seed` starts from.

    Args:
        config: of the run.
        seed: of the weights.
        dataset: lazy modules take their shapes from its first sample; None: they stay lazy.

    Raises:
        ValueError, ConfigError: if it cannot be made, or does not fit the config.
    """
    require_memory_for_weights(arguments_of_model(config.model))
    model = made_model(config, seed)
    _require_own_memory(model)
    _bring_together(model)
    train_mode(model)
    if dataset is not None and any(is_lazy(one) for one in [*model.parameters(), *model.buffers()]):
        _materialise(config, model, dataset)
    return as_configured(config, model)


def made_model(config: TrainConfig, seed: int) -> nn.Module:
    """The model as its class makes it, where torch makes tensors.

    Raises:
        TargetError: if it is no module.
    """
    # On the CPU and from its own random key, so that every rank of every topology draws the same weights.
    key = stream_key(seed, "initialisation")
    torch.manual_seed(key)
    with preserved_generators():
        seed_generators(key)
        model = make("model", arguments_of_model(config.model))
        drawn = torch.get_rng_state()
    torch.set_rng_state(drawn)  # lazy modules draw next
    if not isinstance(model, nn.Module):
        raise TargetError(f"model._target_={config.model['_target_']}: made a {type(model).__name__}, not a Module.")
    return model


def _bring_together(model: nn.Module) -> None:
    """Move the model to the CPU, whatever device it chose: each rank moves it to its own device."""
    placed = [*model.named_parameters(), *model.named_buffers()]
    empty = [name for name, one in placed if one.is_meta and not is_lazy(one)]
    if empty:
        raise ValueError(
            f"{len(empty)} of its tensors lie on the meta device and have no values, e.g. {', '.join(empty[:3])}. Make "
            "the model on the CPU, and load or initialise its weights there."
        )
    expanded = [name for name, one in model.named_parameters() if not is_lazy(one) and is_expanded(one)]
    if expanded:
        raise ValueError(
            f"elements of {', '.join(expanded[:3])} share one place in memory, as expand() leaves them: no optimizer "
            "could write into them. Add .clone() or .contiguous()."
        )
    device_map: Any = getattr(model, "hf_device_map", {})
    if (count := len(set(device_map.values()))) > 1:
        raise ValueError(
            f"its parts are placed on {count} devices (device_map), and every rank holds the whole model on one "
            "device. Load it without device_map."
        )
    if any(one.device.type != "cpu" for _, one in placed):
        model.cpu()


def _require_own_memory(model: nn.Module) -> None:
    """Refuse two parameters over one memory: moving or converting the model would separate them."""
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        has_memory = type(parameter.data) is torch.Tensor and not is_lazy(parameter)
        address = parameter.data_ptr() if has_memory else 0
        if address and address in owners:
            raise ConfigError(
                [f"model: {owners[address]} and {name} are two parameters over one memory: moving or converting the "
                 "model separates them, and each is reduced and stepped by itself. Make them one parameter: "
                 f"module.{name} = module.{owners[address]}."]
            )  # fmt: skip
        owners[address] = name


def build_optimizer(config: TrainConfig, model: nn.Module, device: Device | None = None) -> torch.optim.Optimizer:
    """The optimizer of the config over the parameter groups of `model`; the loop sets its learning rate.

    Args:
        config: of the run.
        model: of the run.
        device: that it will step on; None: the one of this process.
    """
    node, device = dict(config.optimizer), device or Device.own()
    if "lr" in node:
        raise TargetError(
            f"optimizer.lr={node['lr']}: the rate is derived from scaling.base_lr, scaling.base_batch_size and "
            "scaling.rule. Set these."
        )
    check_arguments("optimizer", node, supplied=("params", "lr"))
    if nans := [name for name, value in node.items() if isinstance(value, float) and value != value]:
        raise TargetError(*(f"optimizer.{name}=nan: every weight would be NaN. Give a number." for name in nans))
    weight_decay = node.pop("weight_decay", 0.0)
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, (int, float)):
        raise TargetError(f"optimizer.weight_decay={weight_decay}: must be a number.")
    parameters, lr = config.parameters, config.scaling.base_lr
    groups = parameter_groups(
        model,
        weight_decay=weight_decay,
        exclude_from_decay=parameters.exclude_from_decay,
        exclude_from_adaptation=parameters.exclude_from_adaptation,
        lr=lr,
        lr_factors=_lr_factors(config, model),
    )
    if fused(device, config.optimizer, model).value:
        node["fused"] = True
    if compiled_optimizer(device, config.optimizer).value is False:
        node["compile"] = False
    with without_compiler():
        optimizer = make("optimizer", node, params=groups, lr=lr)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TargetError(f"optimizer._target_={node['_target_']}: made a {type(optimizer).__name__}, no Optimizer.")
    _keep_lr_ratios(optimizer, groups, lr)
    noise_scale_geometry(config, optimizer)  # refused here, where it can be changed
    return optimizer


def _lr_factors(config: TrainConfig, model: nn.Module) -> dict[str, float]:
    parameters = config.parameters
    if parameters.lr_factor is None and parameters.layer_decay is None:
        return {}
    try:
        return lr_factors(
            model,
            parameters.lr_factor,
            layer_decay=parameters.layer_decay,
            layer_pattern=parameters.layer_pattern,
        )
    except ValueError as error:
        raise ConfigError([f"parameters.lr_factor, layer_decay: {error}"]) from None


def _keep_lr_ratios(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], lr: float) -> None:
    """Keep the ratio of each group's rate to the rate of the run, and check that the configured factors are in them.

    An optimizer may set its own rates for its groups. If it makes new groups, it must not lose the configured factors.
    """
    asked = {id(one): group["lr_factor"] for group in groups if "lr_factor" in group for one in group["params"]}
    optimizer.defaults["lr"] = lr  # ratios are relative to the rate passed in, even if the class changes it
    keep_lr_ratios(optimizer)
    kept = {id(one) for group in optimizer.param_groups if "lr_factor" in group for one in group["params"]}
    if lost := asked.keys() - kept:
        raise TargetError(
            f"parameters.lr_factor, layer_decay: {type(optimizer).__name__} makes groups of its own, in which "
            f"{len(lost)} parameters lose their factor. Keep the given groups, or set the rates in the optimizer."
        )


def _materialise(config: TrainConfig, model: nn.Module, dataset: Any) -> None:
    """Run a forward pass of one sample, in which lazy modules take their shapes and draw their weights."""
    skips = config.data.skips
    generator = torch.get_rng_state()  # loading a sample must not change the draws of the weights
    first = SampleOrder(len(dataset)).ids(0, min(_TRIED_TO_SKIP if skips else 1, len(dataset)))
    batch = next(evaluation_batches(dataset, first, len(first), skips=skips))
    torch.set_rng_state(generator)
    try:
        with evaluating(model), torch.no_grad():
            forward(model, _narrowed(batch.inputs) if config.precision.compute == "fp64" else batch.inputs)
    except Exception as error:
        raise ValueError(
            f"its lazy modules take their shapes from a forward pass of one sample, which failed with "
            f"{type(error).__name__}: {error}"
        ) from error
    lazy = [name for name, one in [*model.named_parameters(), *model.named_buffers()] if is_lazy(one)]
    if lazy:
        raise ValueError(
            f"{len(lazy)} parameters of lazy modules have no shape after a forward pass in evaluation mode, e.g. "
            f"{lazy[0]}. Give these modules their sizes, or call the model once where it is made."
        )


def _narrowed(inputs: Any) -> Any:
    """The inputs in float32: lazy weights are drawn in float32 and widened later, as in all other modules."""
    if isinstance(inputs, dict):
        return {name: _narrowed(part) for name, part in inputs.items()}
    return inputs.float() if inputs.dtype == torch.float64 else inputs
