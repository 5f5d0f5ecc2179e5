"""Which batch size? The flow chart of `advice/questions.py` as HTML."""

from __future__ import annotations

from largebatch.experiments.advice.questions import END, QUESTIONS, Question
from largebatch.records.report.html_parts import prose

_BATCH, _LARGE, _SIZES = 32, "batch.total=512", "32,512"  # of the examples


def flow_chart() -> str:
    """An ordered list, drawn as a chart: yes leads down, no to the side."""
    items = "".join(map(_item, QUESTIONS))
    return f'<ol class="flow">{items}<li class="end"><div class="ask">{prose(END)}</div></li></ol>'


def _item(one: Question) -> str:
    again = ' <span class="again">Then ask again.</span>' if one.repeats else ""
    run = "" if "batch.total" in one.answered_by else _LARGE
    return (
        f'<li><div class="ask"><b>{prose(one.text(_BATCH))}</b>'
        f'<p class="command"><code>{one.command(run, _SIZES)}</code></p></div>'
        f'<div class="no"><span class="way">No</span><p>{prose(one.otherwise)}{again}</p></div>'
        f'<span class="way yes">Yes</span></li>'
    )
