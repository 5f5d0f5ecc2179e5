"""Any two runs beside each other: their series, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from largebatch.diagnostics.smoothing import smooth
from largebatch.records.figures.draw_plotly import axis_layout
from largebatch.records.figures.legends import colour_of
from largebatch.records.figures.optimizer_names import optimizer_places
from largebatch.records.figures.plotly_marks import rounded
from largebatch.records.figures.run_metrics import compared_metrics
from largebatch.records.report.evidence import RunRecord
from largebatch.records.report.html_parts import escaped, select, table
from largebatch.records.report.run_figures import run_label
from largebatch.records.report.task_names import shortened
from largebatch.records.rows.placed_rows import thinned

# Key of the rows -> its axis.
SERIES = {metric.key: axis for _, metric, axis in compared_metrics()}
_SMOOTHED = ("train/loss",)
_POINTS_OF_ALL = 40_000  # of all runs and series together: a page of 200 runs stays small
_FEWEST, _MOST = 25, 200  # of a series


def comparison(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """The data with which the page compares any two of the runs.

    Returns:
        `axes`: key -> its layout; `names` of the runs, and `colours` of their optimizers; `series`: per run, key ->
        steps, samples and values; `settings`: key -> the values that occur and, per run, which of them it has (-1:
        none), for keys that differ.
    """
    count = sum(run.has(key) for run in runs for key in SERIES)
    most = max(_FEWEST, min(_MOST, _POINTS_OF_ALL // max(count, 1)))
    places = optimizer_places(run.optimizer for run in runs)
    return {
        "axes": {key: axis_layout(replace(axis, log=False, low=None)) for key, axis in SERIES.items()},
        "colours": [colour_of(places[run.optimizer.lower()]) for run in runs],
        "names": [run.name for run in runs],
        "series": [_series_of(run, most) for run in runs],
        "settings": _settings(runs),
    }


def comparison_html(runs: Sequence[RunRecord]) -> str:
    """The choices, the empty table of settings and the places of the figures."""
    options = [f"{run.name}: {run_label(run)}" for run in runs]
    compared = [place for place, run in enumerate(runs) if run.is_compared] or [0, len(runs) - 1]
    first = compared[0]
    alike = [place for place in compared if runs[place].experiment == runs[first].experiment]
    choices = select("compare-first", "First run", options, chosen=first)
    choices += select("compare-second", "Second run", options, chosen=alike[-1])
    choices += select("compare-against", "Against", ("samples seen", "optimizer steps"))
    present = [key for key in SERIES if any(run.has(key) for run in runs)]
    places = "".join(
        f'<figure data-key="{key}"><h3>{escaped(SERIES[key].label.capitalize())}</h3>'
        f'<div class="plot" role="group" aria-label="{escaped(SERIES[key].label)} of both runs"></div></figure>'
        for key in present
    )
    settings = table(("setting", "first", "second"), [], caption="Settings in which they differ")
    return f'{choices}<div class="figures" id="compare-figures">{places}</div>{settings}'


def _series_of(run: RunRecord, most: int) -> dict[str, list[list[float | None]]]:
    found = {}
    for key in SERIES:
        if not run.has(key):
            continue
        (samples, values), (steps, _) = run.series(key), run.series(key, against="step")
        if key in _SMOOTHED and len(values) > _FEWEST:
            values = smooth(run.column(key).means, len(values) / _FEWEST)
        kept = thinned(len(values), most)
        found[key] = [rounded(column[kept].tolist()) for column in (steps, samples, values)]
    return found


def _settings(runs: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """Only keys that differ between any two: the others would fill a page of many runs."""
    found = {}
    for key in sorted({key for run in runs for key in run.settings}):
        texts = [run.settings.get(key) for run in runs]
        values = list(dict.fromkeys(text for text in texts if text is not None))
        if len(values) > 1 or (values and None in texts):
            places = {text: place for place, text in enumerate(values)}
            found[shortened(key)] = {
                "values": list(map(shortened, values)),
                "of": [-1 if text is None else places[text] for text in texts],
            }
    return found
