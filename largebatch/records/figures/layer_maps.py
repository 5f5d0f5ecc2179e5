"""Maps of all layers over a run: which layer got how much of the learning rate, and when."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from largebatch.records.figures.diagram import Axis, Surface, numbers
from largebatch.records.rows.row_file import Row

_MAPS = {
    "trust_ratio": ("trust ratio", "|weight| / |update| of each layer, as LARS and LAMB scale its rate."),
    "update_to_weight": ("|update| / |weight|", "How far a step moves each layer."),
}
_LARGEST = 1e150  # as of a column
LAYER_PREFIXES = tuple(f"{kind}/" for kind in _MAPS)


def layer_maps(rows: Sequence[Row], *, title: str) -> list[Surface]:
    """A map for each quantity with data: layers in the order of the model, over samples.

    Args:
        rows: those of layers.jsonl.
        title: whose layers they are.
    """
    found = (_map(rows, kind, title) for kind in _MAPS)
    return [one for one in found if one is not None]


def _map(rows: Sequence[Row], kind: str, title: str) -> Surface | None:
    """Zeros and infinities have the colours of the ends of the scale; unmeasured cells are white."""
    prefix = f"{kind}/"
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith(prefix)))
    measured = [row for row in rows if any(key.startswith(prefix) for key in row)]
    values = np.array([[_float(row.get(name)) for row in measured] for name in names])
    usable = values[np.isfinite(values) & (values > 0)]
    if not usable.size:
        return None
    shown = np.where(values == 0, usable.min(), np.where(np.isposinf(values), usable.max(), values))
    quantity, meaning = _MAPS[kind]
    return Surface(
        kind,
        f"{quantity[:1].upper()}{quantity[1:]} of every layer: {title}",
        Axis("samples seen"),
        Axis("layer"),
        Axis(quantity, log=True),
        [float(row["samples_seen"]) for row in measured],
        list(range(len(names))),
        [numbers(row) for row in shown],
        caption=f"{meaning} Left white where there is none.",
        row_names=[name.removeprefix(prefix) for name in names],
    )


def _float(value: object) -> float:
    """A ratio as a number: NaN if it is none, infinite beyond the largest that a column takes."""
    if not isinstance(value, (int, float)) or not value >= 0:
        return math.nan
    return float(value) if value <= _LARGEST else math.inf
