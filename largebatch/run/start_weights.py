"""Weights that a model starts from, in place of drawn ones: `model.weights`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from largebatch.distributed.checksums import tensors_sha256
from largebatch.models.start_weights import FittedWeights, brief_names, fit_weights, likely_prefixes, part_of
from largebatch.records.weights_file import read_weights
from largebatch.run.config.model_node import WeightsSource, weights_of
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import TrainConfig


@dataclass(frozen=True)
class StartWeights:
    """The weights that a run starts from, to be told and compared.

    Attributes:
        sha256: of the file's tensors, or of those that its `prefix` and `into` name.
        value: how many were loaded, for the plan.
        why: from where, and what was left.
    """

    sha256: str
    value: str
    why: str


def load_start_weights(config: TrainConfig, model: nn.Module) -> StartWeights | None:
    """Put the weights that the config names into the model; None: it names none. One rank calls it for all.

    Raises:
        ConfigError: if the file cannot be read, or does not fit.
    """
    source = weights_of(config.model)
    if source is None:
        return None
    try:
        found = read_weights(Path(source.file).expanduser(), source.entry)
    except ValueError as error:
        raise ConfigError([f"model.weights={source.file}: {error}. {_REMEDY}"]) from None
    tensors = part_of(found.tensors, source.prefix)
    _require_parts(model, source, tensors, found.tensors)
    try:
        fitted = fit_weights(model, tensors, source.into)
    except Exception as error:  # of a hook of the model's own
        raise ConfigError([f"model.weights={source.file}: loading failed with {error}"]) from error
    _require_fit(model, source, fitted, tensors)
    is_part = source.prefix or source.into
    sha256 = tensors_sha256((source.into + name, one) for name, one in tensors.items()) if is_part else found.sha256
    told = _told(source, fitted, list(found.notes), sha256)
    return StartWeights(sha256, f"{fitted.loaded} of {fitted.total} tensors", told)


_REMEDY = (
    "Give a file of safetensors or of torch.save, a checkpoint, a run, or a folder of transformers; null: drawn weights"
    " (a run that goes on from its own checkpoint needs resume_allow=[start_weights] then)."
)


def _require_parts(
    model: nn.Module, source: WeightsSource, tensors: Mapping[str, Any], of_file: Mapping[str, Any]
) -> None:
    own = model.state_dict()
    wrong = [f"prefix={source.prefix}: no name of the file begins so: {brief_names(of_file)}"] * (not tensors)
    if not any(name.startswith(source.into) for name in own):
        wrong.append(f"into={source.into}: no tensor of {type(model).__name__} begins so: {brief_names(own)}")
    if wrong:
        raise ConfigError([f"model.weights={source.file}: {text}." for text in wrong])


def _require_fit(model: nn.Module, source: WeightsSource, fitted: FittedWeights, tensors: Mapping[str, Any]) -> None:
    if fitted.loaded == 0:
        fact = f"none of its tensors is one of {type(model).__name__}'s"
    elif source.strict and fitted.left:
        fact = f"does not fit {type(model).__name__}: {'; '.join(fitted.left)}"
    else:
        return
    remedy = (
        f"To load what fits: 'model.weights={{file: {source.file}, strict: false}}'."
        if fitted.loaded
        else _names_apart(source, tensors, model.state_dict())
    )
    raise ConfigError([f"model.weights={source.file}: {fact}. {remedy}"])


def _names_apart(source: WeightsSource, tensors: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What to write where names differ by a prefix; else some names of both."""
    tried = {"prefix": likely_prefixes(tensors, own), "into": likely_prefixes(own, tensors)}
    advice = [
        f"With 'model.weights={{file: {source.file}, {key}: {source.prefix if key == 'prefix' else ''}{prefix}}}' "
        f"{count} of them fit."
        for key, found in tried.items()
        for prefix, count in found[:3]
    ]
    return " ".join([*advice, f"The file has {brief_names(tensors)}; the model {brief_names(own)}."])


def _told(source: WeightsSource, fitted: FittedWeights, notes: list[str], sha256: str) -> str:
    clauses = [f"model.weights={source.file}", *notes]
    clauses += [f"its tensors {source.prefix}*"] * bool(source.prefix) + [f"into {source.into}*"] * bool(source.into)
    clauses += [f"without the prefix {fitted.prefix}"] * bool(fitted.prefix)
    clauses += [f"converted from {', '.join(fitted.converted)}"] * bool(fitted.converted)
    return "; ".join([*clauses, *fitted.left, f"SHA-256 {sha256[:12]}"])
