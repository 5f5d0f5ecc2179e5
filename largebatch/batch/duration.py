"""Lengths of a run and of its parts, a number with a unit: `30ep`, `500steps`, `100000samples`, `10Btokens`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_UNITS = {"ep": "ep", "epoch": "ep", "epochs": "ep", "step": "steps", "steps": "steps"}
_UNITS |= {"sample": "samples", "samples": "samples", "tok": "tokens", "token": "tokens", "tokens": "tokens"}
# Powers of ten as in SI and papers (10B tokens), powers of two as in IEC 80000-13: 0.5Mi is 524,288.
_PREFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_PREFIXES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE]\+?\d{1,2})?)\s*([kKMGBT]i?)?\s*([a-z]+)\s*")


@dataclass(frozen=True)
class Duration:
    """An amount of training. A run counts samples; other units are converted once set and batch are known.

    >>> Duration.parse("2ep").samples(num_samples=100, global_batch_size=32)
    200
    >>> Duration.parse("3 steps").samples(num_samples=100, global_batch_size=32)
    96
    >>> Duration.parse("1Mtokens").samples(num_samples=100, global_batch_size=32, tokens_per_sample=1024)
    976
    """

    amount: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read `30ep`, `2.5 epochs`, `500steps`, `1e5samples` or `10Btokens`.

        k, M, G or B, and T before the unit are powers of ten; Ki, Mi, Gi and Ti are powers of two.

        Raises:
            ValueError: if the number or the unit is missing or unknown, or a number of steps, samples or tokens is
                fractional.
        """
        match = _PATTERN.fullmatch(text)
        prefix, unit = (match[2] or "", _UNITS.get(match[3])) if match else ("", None)
        if match is None or unit is None or prefix not in _PREFIXES or (prefix and unit == "ep"):
            raise ValueError(
                "a length is a number and a unit. Write 30ep, 500steps, 100000samples or 10Btokens (k, M, G or B: "
                "powers of ten; Ki, Mi, Gi: powers of two)."
            )
        amount = Fraction(match[1]) * _PREFIXES[prefix]
        if unit != "ep" and amount.denominator != 1:
            raise ValueError(f"a number of {unit} is whole; only epochs may be fractions.")
        return cls(amount, unit)

    def samples(self, *, num_samples: int, global_batch_size: int, tokens_per_sample: int | None = None) -> int:
        """The length in samples, for a training set of `num_samples`; a rest of tokens below a sample is left out.

        Raises:
            ValueError: for a length in tokens where samples have no fixed number of them, `tokens_per_sample=None`.
        """
        if self.unit == "tokens":
            if tokens_per_sample is None:
                raise ValueError(
                    "a length in tokens needs samples that all have the same number of them. Write it in samples."
                )
            return int(self.amount) // tokens_per_sample
        per_unit = {"ep": num_samples, "steps": global_batch_size, "samples": 1}[self.unit]
        return int(self.amount * per_unit)


def samples_of_tokens(text: str, tokens_per_sample: int) -> int:
    """Samples of a batch that is given in tokens, which must be whole.

    Raises:
        ValueError: if the tokens do not fill whole samples; with the nearest that do.

    >>> samples_of_tokens("0.5Mitokens", 1024)
    512
    >>> samples_of_tokens("0.5Mtokens", 1024)
    Traceback (most recent call last):
        ...
    ValueError: 500,000 tokens are 488.281 samples of 1,024: a batch is whole samples. Nearest that work: 499712tokens \
(488 samples), 500736tokens (489 samples).
    """
    tokens = int(Duration.parse(text).amount)
    below, rest = divmod(tokens, tokens_per_sample)
    if rest == 0 and below > 0:
        return below
    near = [
        f"{one * tokens_per_sample}tokens ({one:,} sample{'' if one == 1 else 's'})"
        for one in (below, below + 1)
        if one > 0
    ]
    raise ValueError(
        f"{tokens:,} tokens are {tokens / tokens_per_sample:.6g} samples of {tokens_per_sample:,}: a batch is whole "
        f"samples. Nearest that work: {', '.join(near)}."
    )


def crosses_multiple(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` samples lies in (before, after], so that a periodic event is due in this step.

    >>> crosses_multiple(100, 64, 96), crosses_multiple(100, 96, 128), crosses_multiple(100, 68, 100)
    (False, True, True)
    """
    return after // every > before // every
