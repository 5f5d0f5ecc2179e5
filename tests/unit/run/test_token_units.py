"""Tokens as a unit of batches and lengths: the same run as in samples, or an error before anything starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from largebatch.run.config.reading import ConfigError
from largebatch.run.plan_report import plan_record, plan_rows
from largebatch.run.prepare import Prepared, prepare
from tests.unit.composing import compose_run

pytestmark = pytest.mark.usefixtures("in_a_folder")

TEXT_MODEL = ("data=text", "data.path=tokens.npy", "data.vocab_size=50", "data.context_length=16",
              "model.num_layers=1", "model.num_heads=1", "model.width=4")  # fmt: skip
TEXT = (*TEXT_MODEL, "data.train.tokenizer=null", "data.train.vocab_size=50",
        "data.validation.tokenizer=null", "data.validation.vocab_size=50")  # fmt: skip
IN_TOKENS = (
    "batch.total=128tokens", "batch.max_micro=0.0625Kitokens", "scaling.base_batch_size=64tokens", "length=8ktokens",
    "batch.ramp.milestones=[1600tokens,6.4ktokens]", "batch.ramp.totals=[256tokens,24]", "schedule=step",
    "schedule.milestones=[3Kitokens]", "schedule.gamma=0.5", "schedule.warmup=500tok",
    "observers.evaluation.every=1601tokens", "observers.checkpoint.every=4ktokens", "observers.sharpness.every=null",
)  # fmt: skip
IN_SAMPLES = (
    "batch.total=8", "batch.max_micro=4", "scaling.base_batch_size=4", "length=500samples",
    "batch.ramp.milestones=[100samples,400samples]", "batch.ramp.totals=[16,24]", "schedule=step",
    "schedule.milestones=[192samples]", "schedule.gamma=0.5", "schedule.warmup=31samples",
    "observers.evaluation.every=100samples", "observers.checkpoint.every=250samples", "observers.sharpness.every=null",
)  # fmt: skip


class Sentences(Dataset[Any]):
    """Token ids as a tokenizer leaves them: lists, whose labels are the inputs."""

    def __init__(self, length: int, ragged: bool = False) -> None:
        self.length, self.ragged = length, ragged

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = [(index + place) % 50 for place in range(self.length)]
        return {"text": "words", "attention_mask": [1] * self.length, "input_ids": ids, "labels": ids}


def prepared(*overrides: str) -> Prepared:
    np.save("tokens.npy", np.arange(20_000, dtype=np.uint16) % 50)
    return prepare(compose_run(*TEXT, *overrides), {}, trains=False, tries=False)


def own_set(length: int, *overrides: str) -> Prepared:
    node = f"{{_target_: {__name__}.Sentences, length: {length}}}"
    sets = ("~data.train", f"+data.train={node}", "~data.validation", f"+data.validation={node}")
    return prepare(compose_run(*TEXT_MODEL, *sets, *overrides), {}, trains=False, tries=False)


def test_a_run_in_tokens_is_the_run_in_samples_in_every_number():
    tokens, samples = prepared(*IN_TOKENS), prepared(*IN_SAMPLES)
    assert dataclasses.asdict(tokens.numbers) == dataclasses.asdict(samples.numbers)
    assert tokens.config == samples.config
    assert tokens.numbers.tokens_per_sample == 16


def test_the_plan_shows_samples_and_tokens():
    made = prepared("batch.total=128tokens", "length=8ktokens", "schedule.warmup=0ep")
    shown = {name: value for name, value, _ in plan_rows(made.numbers, made.optimizer)}
    assert shown["global batch"] == "8 samples = 128 tokens"
    assert shown["training set"] == "1,124 samples = 17,984 tokens"  # 18,000 of 20,000 tokens
    assert plan_record(made)["tokens_per_sample"] == 16


def test_a_set_of_ones_own_counts_tokens_by_its_declared_context():
    made = own_set(16, "batch.total=64tokens", "length=1ktokens", "schedule.warmup=0ep")
    assert (made.numbers.plan.global_batch_size, made.numbers.schedule.total_samples) == (4, 62)


@pytest.mark.parametrize(
    ("length", "overrides", "fact"),
    [
        (16, ("data.context_length=null",), "the set has no attribute context_length, and data.context_length is not"),
        (12, (), "data.context_length=16, and sample 0 has 12 tokens"),
    ],
)
def test_tokens_without_a_fixed_context_are_refused_for_every_key(length: int, overrides: tuple[str, ...], fact: str):
    with pytest.raises(ConfigError) as raised:
        own_set(length, "batch.total=64tokens", "length=1ktokens", "model.context_length=16", *overrides)
    length_error, total_error = raised.value.errors
    assert length_error.startswith("length=1ktokens: ")
    assert total_error.startswith("batch.total=64tokens: ")
    assert fact in total_error
    assert total_error.endswith("Write it in samples.")


def test_a_batch_that_is_no_whole_sample_names_the_nearest():
    with pytest.raises(ConfigError) as raised:
        prepared("batch.total=100tokens", "batch.micro=8tokens")
    assert raised.value.errors == [
        "batch.total=100tokens: 100 tokens are 6.25 samples of 16: a batch is whole samples. Nearest that work: "
        "96tokens (6 samples), 112tokens (7 samples).",
        "batch.micro=8tokens: 8 tokens are 0.5 samples of 16: a batch is whole samples. Nearest that work: 16tokens "
        "(1 sample).",
    ]


def test_images_have_no_tokens():
    with pytest.raises(ConfigError, match=r"batch\.total=64tokens: samples have no fixed number of tokens"):
        prepare(compose_run("batch.total=64tokens"), {}, trains=False, tries=False)


def test_lengths_in_tokens_reach_every_key_of_that_type(tmp_path: Path):
    """A key that somebody adds counts in tokens by its type alone."""
    from largebatch.diagnostics.settings import Section
    from largebatch.run.config.token_units import in_samples, keys_in_tokens
    from largebatch.run.config.types import DurationText, SampleCount

    class Inner(Section):
        half_life: DurationText | None = None
        every: list[DurationText] | None = None

    class Outer(Section):
        inner: Inner
        sizes: list[SampleCount] | None = None
        name: str = "5tokens"

    outer = Outer(inner=Inner(half_life="1ktokens", every=["2ep", "20tokens"]), sizes=[3, "40tokens"])  # type: ignore[list-item]
    assert keys_in_tokens(outer).keys() == {"inner.half_life", "inner.every", "sizes"}
    errors: list[str] = []
    assert in_samples(outer, 10, errors) == Outer(
        inner=Inner(half_life="100samples", every=["2ep", "2samples"]), sizes=[3, 4]
    )
    assert errors == []
