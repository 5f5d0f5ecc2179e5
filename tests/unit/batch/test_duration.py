"""Lengths with a unit, and the intervals they make."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.batch.duration import Duration, crosses_multiple, samples_of_tokens

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("30ep", 30, "ep"),
        ("1epoch", 1, "ep"),
        ("2.5 epochs", Fraction(5, 2), "ep"),
        ("0.1ep", Fraction(1, 10), "ep"),
        ("500steps", 500, "steps"),
        ("1 step", 1, "steps"),
        (" 100000 samples ", 100_000, "samples"),
        ("1sample", 1, "samples"),
        ("3.0steps", 3, "steps"),
        ("0ep", 0, "ep"),
        ("1e3steps", 1000, "steps"),
        ("2.5e6 samples", 2_500_000, "samples"),
        ("0.5Mtokens", 500_000, "tokens"),
        ("0.5Mitokens", 2**19, "tokens"),
        ("10Btokens", 10**10, "tokens"),
        ("10 Gtok", 10**10, "tokens"),
        ("2ktokens", 2000, "tokens"),
        ("2Kitokens", 2048, "tokens"),
        ("3ksamples", 3000, "samples"),
        ("1token", 1, "tokens"),
    ],
)
def test_a_number_and_a_unit_are_read(text: str, amount: Fraction, unit: str):
    assert Duration.parse(text) == Duration(Fraction(amount), unit)


@pytest.mark.parametrize(
    "text",
    [
        "30",
        "ep",
        "",
        "30 min",
        "-1ep",
        "1kep",
        "1mtokens",
        "1Bitokens",
        "1e-3samples",
        "30EP",
        "nanep",
        "1,5ep",
        "1.ep",
        ".5ep",
        "1ep2steps",
        "1/2ep",
    ],
)
def test_anything_else_is_refused_with_examples(text: str):
    with pytest.raises(ValueError, match=r"a number and a unit\. Write 30ep, 500steps, 100000samples or 10Btokens"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("text", "unit"), [("2.5steps", "steps"), ("0.1 samples", "samples"), ("0.0005ktokens", "tokens")]
)
def test_only_epochs_may_be_fractions(text: str, unit: str):
    with pytest.raises(ValueError, match=f"a number of {unit} is whole; only epochs may be fractions"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("text", "samples"),
    [("2ep", 2000), ("2.5ep", 2500), ("7steps", 224), ("99samples", 99), ("0steps", 0), ("0.0019ep", 1)],
)
def test_lengths_are_counted_in_samples(text: str, samples: int):
    assert Duration.parse(text).samples(num_samples=1000, global_batch_size=32) == samples


def test_tokens_are_whole_samples_and_the_rest_is_left_out():
    tokens = Duration.parse("10Btokens")
    assert tokens.samples(num_samples=7, global_batch_size=3, tokens_per_sample=4096) == 10**10 // 4096
    with pytest.raises(ValueError, match="needs samples that all have the same number of them"):
        tokens.samples(num_samples=7, global_batch_size=3)


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 10**13), st.integers(1, 10**5))
def test_a_batch_in_tokens_is_exact_or_names_the_nearest_that_are(tokens: int, context: int):
    if tokens % context == 0:
        assert samples_of_tokens(f"{tokens}tokens", context) * context == tokens
        return
    with pytest.raises(ValueError, match="whole samples") as error:
        samples_of_tokens(f"{tokens}tokens", context)
    named = [int(one) for one in re.findall(r"(\d+)tokens", str(error.value))]
    assert all(one > 0 and samples_of_tokens(f"{one}tokens", context) * context == one for one in named)
    assert max(named) - tokens < context
    assert tokens - min(named) < context


def test_fractions_of_an_epoch_are_exact():
    # In binary floating point 0.29 * 100 is 28.999999999999996, and 29 samples would become 28.
    assert [Duration.parse(f"0.{n:02}ep").samples(num_samples=100, global_batch_size=7) for n in range(100)] == list(
        range(100)
    )


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 60), st.integers(0, 200), st.integers(0, 200))
def test_an_interval_is_over_exactly_when_a_multiple_lies_within_the_step(every: int, before: int, length: int):
    after = before + length
    assert crosses_multiple(every, before, after) == any(count % every == 0 for count in range(before + 1, after + 1))


def test_no_event_of_an_interval_is_lost_or_doubled_whatever_the_batch():
    for global_batch_size in (1, 3, 7, 10):
        steps = [crosses_multiple(10, step * global_batch_size, (step + 1) * global_batch_size) for step in range(1000)]
        assert sum(steps) == 1000 * global_batch_size // 10
