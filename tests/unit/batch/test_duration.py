"""Lengths with a unit, and the intervals they make."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.batch.duration import Duration, crosses_multiple

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
    ],
)
def test_a_number_and_a_unit_are_read(text: str, amount: Fraction, unit: str):
    assert Duration.parse(text) == Duration(Fraction(amount), unit)


@pytest.mark.parametrize(
    "text",
    ["30", "ep", "", "30 min", "-1ep", "1e3steps", "30EP", "nanep", "1,5ep", "1.ep", ".5ep", "1ep2steps", "1/2ep"],
)
def test_anything_else_is_refused_with_examples(text: str):
    with pytest.raises(ValueError, match=r"a number and a unit\. Write 30ep, 500steps or 100000samples"):
        Duration.parse(text)


@pytest.mark.parametrize(("text", "unit"), [("2.5steps", "steps"), ("0.1 samples", "samples")])
def test_only_epochs_may_be_fractions(text: str, unit: str):
    with pytest.raises(ValueError, match=f"a number of {unit} is whole; only epochs may be fractions"):
        Duration.parse(text)


@pytest.mark.parametrize(
    ("text", "samples"),
    [("2ep", 2000), ("2.5ep", 2500), ("7steps", 224), ("99samples", 99), ("0steps", 0), ("0.0019ep", 1)],
)
def test_lengths_are_counted_in_samples(text: str, samples: int):
    assert Duration.parse(text).samples(num_samples=1000, global_batch_size=32) == samples


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
