"""Settings of the config that the made model gets: precision, frozen parameters, checkpointing, groups of the noise."""

from __future__ import annotations

import torch
from torch import nn

from largebatch.gradient.exact_batch_norm import batch_norms
from largebatch.models.checkpointing import BLOCKS, checkpoint_activations, matching_modules
from largebatch.models.freezing import freeze
from largebatch.models.layout import convolutions_2d
from largebatch.optim import OptimizerGeometry, parameters_by_name
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import TrainConfig


def as_configured(config: TrainConfig, model: nn.Module) -> nn.Module:
    """The model in the precision of the config, with its settings.

    Raises:
        ValueError, ConfigError: if it does not fit the config.
    """
    if config.precision.compute == "fp64":
        model = model.double()  # `Runtime.wrap` would do it only after the dry run
    _freeze(config, model)
    if config.batch_norm == "exact":
        try:
            batch_norms(model)
        except ValueError as error:
            raise ConfigError([f"batch_norm=exact: {error}"]) from None
    try:
        noise_scale_groups(config, model)
    except ValueError as error:
        raise ConfigError([f"observers.noise_scale.groups: {error}"]) from None
    pattern = config.precision.activation_checkpointing
    if pattern:
        checkpoint_activations(model, block_pattern(config))
    if config.precision.channels_last and not convolutions_2d(model):
        raise ConfigError(
            ["precision.channels_last=true: has no effect, the model has no two-dimensional convolution. Use null."]
        )
    if config.precision.compile == "blocks":
        matching_modules(model, block_pattern(config))  # a pattern without a match is refused here
    return model


def _freeze(config: TrainConfig, model: nn.Module) -> None:
    entries, norms = config.parameters.freeze, config.parameters.frozen_norms
    if not entries:
        if norms != "hold":
            raise ConfigError([f"parameters.frozen_norms={norms}: has no effect without parameters.freeze. Remove it."])
        return
    try:
        freeze(model, entries, holds_statistics=norms == "hold")
    except ValueError as error:
        raise ConfigError([f"parameters.{error}"]) from None


def block_pattern(config: TrainConfig) -> str:
    """Regular expression of the names of the model's blocks: those that are checkpointed, or compiled."""
    pattern = config.precision.activation_checkpointing
    return pattern if isinstance(pattern, str) else BLOCKS


def noise_scale_groups(config: TrainConfig, model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The groups of parameters whose noise scales are measured separately.

    Raises:
        ValueError: see `parameters_by_name`.
    """
    groups = config.observers.noise_scale.groups
    return parameters_by_name(model, groups) if groups else {}


def noise_scale_geometry(config: TrainConfig, optimizer: torch.optim.Optimizer) -> OptimizerGeometry | None:
    """The optimizer's geometry, if the noise scale is to be measured in it; None also where it is the Euclidean one.

    Raises:
        ConfigError: if the optimizer's preconditioner is not known.
    """
    options = config.observers.noise_scale
    if options.every is None or options.geometry == "euclidean":
        return None
    try:
        geometry = OptimizerGeometry(optimizer)
    except ValueError as error:
        raise ConfigError(
            [f"observers.noise_scale.geometry=optimizer: {error} observers.noise_scale.geometry=euclidean is that."]
        ) from None
    return None if geometry.is_euclidean else geometry
