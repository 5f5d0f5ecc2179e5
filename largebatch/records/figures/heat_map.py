"""A picture of all layers over a run: which layer got how much of the learning rate, and when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from largebatch.records.figures.drawing import save
from largebatch.records.rows.row_file import Row

_MOST_LABELS = 60
_TITLES = {"trust_ratio": "trust ratio", "update_to_weight": "|update| / |weight|"}


def plot_layers(rows: Sequence[Row], folder: str | Path, title: str) -> list[Path]:
    """Draw `trust_ratio.png` and `update_to_weight.png`, layer x samples, from the rows of layers.jsonl.

    Returns:
        The paths of those that had data.
    """
    figures = {kind: layers_figure(rows, kind, title) for kind in _TITLES}
    return [save(figure, Path(folder) / f"{kind}.png") for kind, figure in figures.items() if figure is not None]


def layers_figure(rows: Sequence[Row], kind: str, title: str) -> Figure | None:
    """Layers in the order of the model from top to bottom, samples seen from left to right; None without data.

    White: not measured there. Zeros and infinities have the colours of the ends of the scale.
    """
    prefix = f"{kind}/"
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith(prefix)))
    if not names:
        return None
    measured = [row for row in rows if any(key.startswith(prefix) for key in row)]
    values = np.array([[float(row.get(name, np.nan)) for row in measured] for name in names])
    usable = values[np.isfinite(values) & (values > 0)]
    if not usable.size:
        return None
    edges = _edges(np.array([float(row["samples_seen"]) for row in measured]))
    height = 2.2 + 0.16 * min(len(names), _MOST_LABELS)
    figure = Figure(figsize=(9, height), layout="constrained")
    ax = figure.add_subplot()
    scale = LogNorm(usable.min(), max(usable.max(), usable.min() * 1.01))
    shown = np.where(values == 0, usable.min(), np.where(np.isposinf(values), usable.max(), values))
    mesh = ax.pcolormesh(edges, np.arange(len(names) + 1), np.ma.masked_invalid(shown), norm=scale, cmap="viridis")
    ax.invert_yaxis()
    stride = -(-len(names) // _MOST_LABELS)
    ax.set_yticks(np.arange(0, len(names), stride) + 0.5, [name.removeprefix(prefix) for name in names[::stride]])
    ax.tick_params(axis="y", labelsize=7, length=0)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlabel("samples seen")
    figure.colorbar(mesh, ax=ax, label=f"{_TITLES[kind]} (logarithmic)", fraction=0.05)
    figure.suptitle(f"{title}: {_TITLES[kind]} of every layer", fontweight="bold")
    return figure


def _edges(samples: np.ndarray) -> np.ndarray:
    """Borders of the columns: a measurement stands for the stretch up to it."""
    first = samples[0] - (samples[1] - samples[0] if len(samples) > 1 else samples[0])
    return np.concatenate([[max(first, 0.0)], samples])
