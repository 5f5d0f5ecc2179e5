"""Which batch size? A flow chart of five questions with the commands that answer them."""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.records.report.html_parts import prose


@dataclass(frozen=True)
class Question:
    """A question of the chart; with yes it goes on.

    Attributes:
        text: ends in a question mark.
        command: answers it.
        otherwise: what to do with no.
        repeats: whether the same question is asked again afterwards.
    """

    text: str
    command: str
    otherwise: str
    repeats: bool = False


QUESTIONS = (
    Question(
        "Does a step with a batch of 32 fit in memory?",
        "largebatch plan batch.total=32 plan.memory=80GiB",
        "Set `batch.max_micro` to what the plan proposes. Gradients accumulate, and the result stays the same.",
    ),
    Question(
        "Do you know the noise scale of your task?",
        "largebatch train observers.noise_scale.every=10",
        "Train a short run with this observer. The noise scale grows as the loss falls, so read it at the end.",
    ),
    Question(
        "Has the batch reached the noise scale, or the largest that your devices take at full speed?",
        "largebatch report runs",
        "Double the batch. Below the noise scale, twice the batch takes nearly half the steps.",
        repeats=True,
    ),
    Question(
        "Was the learning rate tuned at this batch size?",
        "largebatch find-lr batch.total=512",
        "Start from `scaling=linear` for SGD, `scaling=sqrt` for Adam and LAMB, with a warmup; then search.",
    ),
    Question(
        "Does validation hold against the small batch, over three seeds?",
        "largebatch compare runs/small_* runs/large_*",
        "Try `optimizer=lars`, `optimizer=lamb` or a longer warmup, each tuned. If it still falls, halve the batch.",
        repeats=True,
    ),
)
_END = "Train with this batch size. To know how far it may grow: `largebatch study` measures steps to a target."


def flow_chart() -> str:
    """An ordered list, drawn as a chart: yes leads down, no to the side."""
    items = "".join(map(_item, QUESTIONS))
    return f'<ol class="flow">{items}<li class="end"><div class="ask">{prose(_END)}</div></li></ol>'


def _item(one: Question) -> str:
    again = ' <span class="again">Then ask again.</span>' if one.repeats else ""
    return (
        f'<li><div class="ask"><b>{prose(one.text)}</b><p class="command"><code>{one.command}</code></p></div>'
        f'<div class="no"><span class="way">No</span><p>{prose(one.otherwise)}{again}</p></div>'
        f'<span class="way yes">Yes</span></li>'
    )
