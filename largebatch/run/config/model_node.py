"""The section `model`: what its class takes, and the weights to start from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from largebatch.diagnostics.settings import Section
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.targets import TargetError, find_target

_KEY = "weights"


class WeightsSource(Section):
    """Where the weights are that a model starts from.

    Attributes:
        file: path of a file or folder, see `read_weights`.
        strict: whether every tensor of the model and of the file must fit.
        entry: part of the file; None: the weights.
        prefix: takes the tensors of the file whose names begin with it, without it, such as "encoder_q."; "": all.
        into: part of the model that they are for, such as "backbone."; the others keep their values. "": all of it.
    """

    file: str
    strict: bool = True
    entry: str | None = None
    prefix: str = ""
    into: str = ""


def arguments_of_model(section: Mapping[str, Any]) -> dict[str, Any]:
    """The node that makes the model: without `weights`, unless its class takes an argument of that name.

    A text is then the class's, as torchvision means it; a group with `file` is never.
    """
    keeps = section.get(_KEY) is not None and not _is_source(section)
    return {name: value for name, value in section.items() if name != _KEY or keeps}


def weights_of(section: Mapping[str, Any]) -> WeightsSource | None:
    """The weights to start from; None: the drawn ones.

    Raises:
        ConfigError: if they are named in another form.
    """
    if section.get(_KEY) is None or not _is_source(section):
        return None
    given = section[_KEY]
    try:
        return WeightsSource.model_validate({"file": given} if isinstance(given, str) else given)
    except ValidationError:
        raise ConfigError(
            [
                f"model.weights={given}: is a path, or a group {{file: PATH, strict: true or false, entry: NAME, "
                "prefix: NAME., into: NAME.}."
            ]
        ) from None


def _is_source(section: Mapping[str, Any]) -> bool:
    given = section[_KEY]
    return (isinstance(given, Mapping) and "_target_" not in given) or not _class_takes_weights(section)


def _class_takes_weights(section: Mapping[str, Any]) -> bool:
    try:
        parameters = inspect.signature(find_target("model", section)).parameters
    except (TargetError, TypeError, ValueError):  # reported when it is made
        return False
    return _KEY in parameters
