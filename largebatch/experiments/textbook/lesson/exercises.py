"""The exercises of the chapter, each with the command that answers it."""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.experiments.textbook.lesson.measured import Answers
from largebatch.records.report.html_parts import escaped, folded, prose


@dataclass(frozen=True)
class Exercise:
    """An exercise.

    Attributes:
        kind: conceptual, coding or challenge.
        task: as given.
        solution: what to see, in a sentence or two.
        command: that answers it.
        experiment: of the textbook, whose measured answer stands beside the solution.
    """

    kind: str
    task: str
    solution: str
    command: str
    experiment: str


EXERCISES = (
    Exercise(
        "conceptual",
        "Show that a mini-batch gradient is an unbiased estimate of the full gradient. When is a mean over the batches "
        "of an epoch not the full gradient?",
        "The expectation of a mean is the mean of expectations, each the full gradient. Batches of unequal size must "
        "count by their size.",
        "largebatch textbook unbiasedness",
        "unbiasedness",
    ),
    Exercise(
        "conceptual",
        "How does the variance of the gradient depend on the batch size? What does a batch four times as large buy?",
        "Variance sigma^2 / B: a quarter of the variance, half the standard deviation, at four times the work.",
        "largebatch textbook gradient_variance",
        "gradient_variance",
    ),
    Exercise(
        "conceptual",
        "Why may noise help to generalize? Which two comparisons separate noise from the number of updates?",
        "Noise can leave sharp minima. Compare at equal epochs and at equal steps: the first also changes the updates.",
        "largebatch textbook noise_and_minima",
        "noise_and_minima",
    ),
    Exercise(
        "conceptual",
        "Derive the linear scaling rule from k small steps, and name the step of the derivation that fails.",
        "k steps at nearly equal gradients add up to one step at k times the rate. It fails once gradients change "
        "within the k steps, at the latest beyond 2 / curvature.",
        "largebatch textbook linear_scaling",
        "linear_scaling",
    ),
    Exercise(
        "coding",
        "Measure the variance of mini-batch gradients at B = 1, 10, 100, 1000 and fit a line to the logarithms.",
        "The slope is -1.",
        "largebatch textbook gradient_variance 'textbook.batch_sizes=[1,10,100,1000]'",
        "gradient_variance",
    ),
    Exercise(
        "coding",
        "Descend with the rates 0.001, 0.01, 0.1 and 1.0, with momentum and without. Which converge, "
        "which oscillate, which diverge?",
        "The eigenvalues of a step tell before the run: see the slider above.",
        "largebatch textbook learning_rate 'textbook.rates=[0.001,0.01,0.1,1.0]'",
        "learning_rate",
    ),
    Exercise(
        "coding",
        "Accumulate the gradients of 8 micro-batches of 32 and compare with one batch of 256.",
        "Equal up to rounding, unless the model has batch norm. Divide the sum by 256 once, not each part by 32.",
        "largebatch textbook accumulation",
        "accumulation",
    ),
    Exercise(
        "challenge",
        "Implement LARS and compare it with SGD from batch 32 to the whole set, each with a tuned rate.",
        "Tune every batch size alike, and count the seeds: an untuned rival loses to anything.",
        "largebatch textbook lars",
        "lars",
    ),
)


def exercises(answers: Answers) -> str:
    """All of them, numbered within their kind; solutions are folded."""
    items, count = [], dict.fromkeys((one.kind for one in EXERCISES), 0)
    for one in EXERCISES:
        count[one.kind] += 1
        number = f" {count[one.kind]}" if one.kind != "challenge" else ""
        solution = f"<p>{prose(one.solution)}</p>{answers.line(one.experiment)}"
        items.append(
            f"<li><b>{one.kind.capitalize()}{number}.</b> {escaped(one.task)}"
            f'<p class="command"><code>{escaped(one.command)}</code></p>{folded("Solution", solution)}</li>'
        )
    return f'<ul class="exercises">{"".join(items)}</ul>'
