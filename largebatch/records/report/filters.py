"""The filters of the page: by optimizer, by batch size, by experiment. They act on figures, lists and rows alike."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.records.figures.legends import colour_of
from largebatch.records.figures.optimizer_names import optimizer_places
from largebatch.records.report.evidence import Evidence
from largebatch.records.report.html_parts import escaped

_MOST = 12  # batch sizes that fit


def filter_bar(evidence: Evidence) -> str:
    """Buttons and a list for what differs between the runs; empty where nothing does."""
    places = optimizer_places(run.optimizer for run in evidence.runs)
    optimizers = sorted({run.optimizer for run in evidence.runs}, key=lambda name: places[name.lower()])
    sizes = sorted({run.global_batch_size for run in evidence.compared})
    experiments = list(dict.fromkeys(run.experiment for run in evidence.compared))
    parts = [
        _buttons("optimizer", [(name, name, colour_of(places[name.lower()])) for name in optimizers]),
        _buttons("batch", [(str(size), f"{size:,}", "") for size in sizes[:_MOST]]) if len(sizes) <= _MOST else "",
        _experiments(experiments),
    ]
    return "".join(parts)


def _buttons(facet: str, values: Sequence[tuple[str, str, str]]) -> str:
    if len(values) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-{facet}="{escaped(value)}">{_dot(colour)}{escaped(text)}'
        "</button>"
        for value, text, colour in values
    )
    return f'<span class="facet" role="group" aria-label="Filter by {facet}"><span>{facet}</span>{buttons}</span>'


def _dot(colour: str) -> str:
    return f'<i style="background:{colour}"></i>' if colour else ""


def _experiments(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = "".join(f'<option value="{escaped(name)}">{escaped(name)}</option>' for name in names)
    return (
        '<span class="facet"><label for="experiment">experiment</label> <select id="experiment" autocomplete="off">'
        f'<option value="">all</option>{items}</select></span>'
    )
