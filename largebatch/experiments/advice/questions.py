"""The flow chart of a batch size: its questions and the commands that answer them, for the textbook and for advice."""

from __future__ import annotations

from dataclasses import dataclass

MEMORY, NOISE, REACHED, COMMUNICATION, RATE, GAP = "memory", "noise", "reached", "communication", "rate", "gap"


@dataclass(frozen=True)
class Question:
    """A question of the chart; with yes it goes on.

    Attributes:
        key: names it.
        ask: ends in a question mark; `{batch}` is the batch in question.
        answered_by: a command; `{run}` are the settings of the run, `{sizes}` two batch sizes.
        otherwise: what to do with no.
        repeats: whether the same question is asked again afterwards.
    """

    key: str
    ask: str
    answered_by: str
    otherwise: str
    repeats: bool = False

    def text(self, batch: int) -> str:
        """The question about a batch."""
        return self.ask.format(batch=f"{batch:,}")

    def command(self, run: str, sizes: str) -> str:
        """The command for a run.

        >>> QUESTIONS[4].command("batch.total=512", "32,512")
        'largebatch find-lr batch.total=512'
        """
        return " ".join(self.answered_by.format(run=run, sizes=sizes).split())


QUESTIONS = (
    Question(
        MEMORY,
        "Does a step with a batch of {batch} fit in memory?",
        "largebatch plan {run} plan.memory=80GiB",
        "Set `batch.max_micro` to what the plan proposes. Gradients accumulate, and the result stays the same.",
    ),
    Question(
        NOISE,
        "Do you know the noise scale of your task?",
        "largebatch train {run} observers.noise_scale.every=10",
        "Train a short run with this observer. The noise scale grows as the loss falls, so read it at the end.",
    ),
    Question(
        REACHED,
        "Has the batch reached the noise scale, or the largest that your devices take at full speed?",
        "largebatch advise {run}",
        "Double the batch. Below the noise scale, twice the batch takes nearly half the steps.",
        repeats=True,
    ),
    Question(
        COMMUNICATION,
        "Does communication take less than a tenth of a step?",
        "torchrun --standalone --nproc-per-node 2 -m largebatch measure communication {run}",
        "Accumulate more samples on each rank, or send gradients in fewer bits: `precision.gradient_compression`.",
    ),
    Question(
        RATE,
        "Was the learning rate tuned at this batch size?",
        "largebatch find-lr {run}",
        "Start from `scaling=linear` for SGD, `scaling=sqrt` for Adam and LAMB, with a warmup; then search.",
    ),
    Question(
        GAP,
        "Does validation hold against the small batch, over three seeds?",
        "largebatch train --multirun {run} batch.total={sizes} seed=0,1,2",
        "Try `optimizer=lars`, `optimizer=lamb` or a longer warmup, each tuned. If it still falls, halve the batch.",
        repeats=True,
    ),
)
END = "Train with this batch size. To know how far it may grow: `largebatch study` measures steps to a target."
