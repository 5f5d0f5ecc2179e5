"""Quick checks: questions to click, each with its answers, the reason, and the experiment that measures it."""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.experiments.textbook.lesson.measured import Answers
from largebatch.records.report.html_parts import escaped, prose


@dataclass(frozen=True)
class Check:
    """A question.

    Attributes:
        question: as asked.
        answers: to choose from.
        right: place of the right one.
        reason: why.
        experiment: of the textbook, which measures it.
    """

    question: str
    answers: tuple[str, ...]
    right: int
    reason: str
    experiment: str


CHECKS = (
    Check(
        "Which variant comes first to a given loss, by the clock?",
        ("always batch descent", "always stochastic descent", "mostly a mini-batch"),
        2,
        "On a parallel device a step of 32 samples takes hardly longer than one of a single sample, and has a sixth of "
        "its noise. Batch descent makes one update in an epoch.",
        "gd_variants",
    ),
    Check(
        "The batch grows from 32 to 64. What happens to the standard deviation of the gradient's noise?",
        ("it halves", "it falls by the root of 2", "it stays"),
        1,
        "The variance of a mean of B independent gradients is sigma^2 / B; the standard deviation is its root. Half "
        "the noise takes four times the batch.",
        "gradient_variance",
    ),
    Check(
        "Is the gradient of a random mini-batch unbiased?",
        ("yes, at any batch size", "only for large batches", "no, small batches point elsewhere"),
        0,
        "Every sample is equally likely in it, so its expectation is the full gradient. Only the noise depends on B. "
        "Beware of a shorter last batch: if it counts as much as the others, its samples count more.",
        "unbiasedness",
    ),
    Check(
        "Must a batch size be a power of two?",
        ("yes, others are slow", "no, that has to be timed", "yes, others converge worse"),
        1,
        "Nothing in the mathematics prefers it. Kernels work in tiles, so a multiple of 8 or 64 can be faster; whether "
        "it is, depends on model and device.",
        "powers_of_two",
    ),
    Check(
        "Momentum 0.9, largest curvature h. Up to which rate is gradient descent stable?",
        ("2 / h", "3.8 / h", "0.2 / h"),
        1,
        "The limit is 2 (1 + m) / h: the velocity of the last steps brakes the overshoot.",
        "learning_rate",
    ),
    Check(
        "Eight micro-batches of 32 are accumulated. Is that a batch of 256?",
        ("no, eight smaller steps", "yes, but for layers that mix samples", "only with a rate eight times as large"),
        1,
        "The sum of the eight gradients is the gradient of all 256. Batch norm is the exception: it takes its "
        "statistics over each micro-batch.",
        "accumulation",
    ),
    Check(
        "SGD, eight times the batch: which learning rate is the first guess?",
        ("the same", "eight times", "an eighth"),
        1,
        "Eight small steps along nearly equal gradients go as far as one step with eight times the rate. It ends where "
        "this rate meets the limit of stability; before that, warm up.",
        "linear_scaling",
    ),
    Check(
        "A larger batch validates worse. Is the batch the cause?",
        ("yes, it finds sharper minima", "perhaps: it also made fewer updates", "no, batches do not matter"),
        1,
        "In the same epochs a larger batch makes fewer updates, with a rate that was often tuned for the small one. "
        "Compare at equal steps and tuned rates before blaming the minima.",
        "noise_and_minima",
    ),
)


def quick_checks(answers: Answers) -> str:
    """All of them."""
    return f'<div class="checks">{"".join(_check(one, answers) for one in CHECKS)}</div>'


def _check(one: Check, answers: Answers) -> str:
    buttons = "".join(
        f'<button type="button"{" data-right" if place == one.right else ""}>{escaped(text)}</button>'
        for place, text in enumerate(one.answers)
    )
    right = one.answers[one.right]
    reason = f"<p><b>{escaped(right[0].upper() + right[1:])}.</b> {prose(one.reason)}</p>{answers.line(one.experiment)}"
    return (
        f'<div class="check" role="group" aria-label="{escaped(one.question)}"><h3>{escaped(one.question)}</h3>'
        f'<div class="options">{buttons}</div><div role="status"><b class="result"></b>'
        f'<div class="reason">{reason}</div></div></div>'
    )
