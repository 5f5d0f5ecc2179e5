"""Numbers of a config that are given in tokens become samples, once the tokens of a sample are known."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BeforeValidator, WrapValidator
from pydantic.fields import FieldInfo

from largebatch.batch.duration import Duration, samples_of_tokens
from largebatch.diagnostics.settings import Section
from largebatch.run.config.schema import BatchConfig
from largebatch.run.config.types import DurationText, HalfLife, SampleCount, is_in_tokens

AnySection = TypeVar("AnySection", bound=Section)
# What tells these types apart from other texts and numbers: their validators.
_DURATION, _HALF_LIFE, _COUNT = (
    next(part for part in typing.get_args(one) if isinstance(part, (BeforeValidator, WrapValidator)))
    for one in (DurationText, HalfLife, SampleCount)
)


def in_samples(section: AnySection, tokens_per_sample: int, errors: list[str], prefix: str = "") -> AnySection:
    """The section with samples wherever it has tokens: in every duration and every size of a batch, by their types.

    Args:
        section: of the config, or all of it.
        tokens_per_sample: of the training set.
        errors: gets an error for each batch that is not whole samples.
        prefix: of its keys.
    """

    def converted(key: str, text: str, is_size: bool) -> Any:
        try:
            if is_size:
                return samples_of_tokens(text, tokens_per_sample)
        except ValueError as error:
            errors.append(f"{key}={text}: {error}")
            return 1
        samples = Duration.parse(text).samples(num_samples=1, global_batch_size=1, tokens_per_sample=tokens_per_sample)
        return f"{samples}samples"

    return _changed(section, converted, prefix)


def keys_in_tokens(section: Section) -> dict[str, str]:
    """The keys that are given in tokens, with their texts."""
    found: dict[str, str] = {}

    def noted(key: str, text: str, is_size: bool) -> str:
        found[key] = text
        return text

    _changed(section, noted, "")
    return found


def _changed(section: AnySection, change: Callable[[str, str, bool], Any], prefix: str) -> AnySection:
    """The section with `change(key, text, whether it is a size)` in place of each text in tokens."""
    changes: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        key, value = f"{prefix}{name}", getattr(section, name)
        if isinstance(value, Section):
            inner = _changed(value, change, f"{key}.")
            if inner is not value:
                changes[name] = inner
            continue
        is_size = _has(field, _COUNT) or (isinstance(section, BatchConfig) and name == "total")
        if not is_size and not (_has(field, _DURATION) or _has(field, _HALF_LIFE)):
            continue
        if isinstance(value, list) and any(map(is_in_tokens, value)):
            changes[name] = [change(key, one, is_size) if is_in_tokens(one) else one for one in value]
        elif is_in_tokens(value):
            changes[name] = change(key, value, is_size)
    return section.model_copy(update=changes) if changes else section


def _has(field: FieldInfo, marker: Any) -> bool:
    """Whether the type of a field, or of a part of it, carries this validator."""
    return marker in field.metadata or _inside(field.annotation, marker)


def _inside(annotation: Any, marker: Any) -> bool:
    return marker in getattr(annotation, "__metadata__", ()) or any(
        _inside(part, marker) for part in typing.get_args(annotation)
    )
