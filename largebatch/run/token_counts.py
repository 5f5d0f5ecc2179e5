"""Tokens of the samples of a run: a config that counts in them is counted in samples before anything is derived."""

from __future__ import annotations

from typing import Any

from largebatch.data.sample_tokens import tokens_per_sample
from largebatch.run.config.findings import Findings
from largebatch.run.config.schema import TrainConfig
from largebatch.run.config.token_units import in_samples, keys_in_tokens


def counted_in_samples(config: TrainConfig, train: Any, findings: Findings) -> tuple[TrainConfig | None, int | None]:
    """The config with samples in place of tokens, and the tokens per sample; None where they are not known.

    Args:
        config: of the run.
        train: training set; None: it could not be made, which is reported.
        findings: gets an error for each number in tokens that cannot be counted in samples.
    """
    keys = keys_in_tokens(config)
    if train is None:
        return (None if keys else config), None
    try:
        tokens = tokens_per_sample(train, config.data.context_length)
    except ValueError as error:
        findings.errors += [f"{key}={text}: {error}. Write it in samples." for key, text in keys.items()]
        return (None if keys else config), None
    errors: list[str] = []
    counted = in_samples(config, tokens, errors)
    findings.errors += errors
    return (None if errors else counted), tokens


def shown_samples(samples: int, tokens: int | None) -> str:
    """A number of samples, with their tokens where these are known.

    >>> shown_samples(512, 1024), shown_samples(512, None)
    ('512 samples = 524,288 tokens', '512 samples')
    """
    return f"{samples:,} samples" + ("" if tokens is None else f" = {samples * tokens:,} tokens")
