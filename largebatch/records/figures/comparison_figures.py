"""Several runs beside each other, from their evaluations. A figure without data is left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from largebatch.records.figures.diagram import Axis, Diagram, Line, is_wide
from largebatch.records.rows.row_file import Row
from largebatch.records.rows.series import has_data, series

Runs = Sequence[tuple[str, Sequence[Row]]]
_COMPARED = {
    "eval/val_accuracy": Axis("validation error", "fraction wrong"),  # 0.99 and 0.98 look alike, 0.01 and 0.02 do not
    "eval/val_loss": Axis("validation loss", "mean per sample or token"),
}
_AGAINST = {"samples_seen": "samples seen", "step": "optimizer steps"}
_LOG_STEPS = 6  # runs that differ by this factor in steps get a logarithmic axis of steps


def comparison_figures(runs: Runs) -> list[Diagram]:
    """Validation error and loss of several runs, over samples and over optimizer steps.

    Args:
        runs: (label, rows) of every run. Runs of one label, say its seeds, are one line, their mean, with a band from
            the least to the greatest value.

    Raises:
        ValueError: if no run has a validation metric.
    """
    figures = []
    for key, axis in _COMPARED.items():
        if not any(has_data(rows, key) for _, rows in runs):
            continue
        for against, label in _AGAINST.items():
            groups = {name: [rows for one, rows in runs if one == name] for name, _ in runs}
            found = (_line(name, group, key, against) for name, group in groups.items())
            lines = tuple(line for line in found if line is not None)
            x = Axis(label, log=against == "step" and _steps_differ_widely(runs))
            y = Axis(axis.label, axis.unit, log=is_wide(value for line in lines for value in line.y))
            title = f"{axis.label.capitalize()} over {label}"
            figures.append(Diagram(f"{key.rpartition('/')[2]}_{against}", title, x, y, lines))
    if not figures:
        raise ValueError(
            f"None of the {len(runs)} runs has {' or '.join(_COMPARED)} in its metrics: there is nothing to compare. "
            "Switch evaluation on for these runs."
        )
    return figures


def _line(label: str, runs: Sequence[Sequence[Row]], key: str, against: str) -> Line | None:
    """The mean of the runs and the band between the least and the greatest, where all of them have values."""
    found = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in (series(rows, key, against) for rows in runs)]
    found = [(x, 1 - y if key == "eval/val_accuracy" else y) for x, y in found if len(x)]
    if not found:
        return None
    start, end = max(x[0] for x, _ in found), min(x[-1] for x, _ in found)
    grid = np.unique(np.concatenate([x for x, _ in found]))
    grid = grid[(grid >= start) & (grid <= end)]
    values = np.array([np.interp(grid, x, y) for x, y in found])
    low, high = (values.min(axis=0).tolist(), values.max(axis=0).tolist()) if len(found) > 1 else (None, None)
    return Line(label, grid.tolist(), values.mean(axis=0).tolist(), low, high, "both")


def _steps_differ_widely(runs: Runs) -> bool:
    last = [max((float(row["step"]) for row in rows if "step" in row), default=0.0) for _, rows in runs]
    last = [steps for steps in last if steps > 0]
    return bool(last) and max(last) >= _LOG_STEPS * min(last)
