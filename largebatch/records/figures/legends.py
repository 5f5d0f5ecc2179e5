"""Colours and legends of figures, the same wherever they are drawn."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from largebatch.records.figures.diagram import Diagram, Surface
from largebatch.records.figures.figure import Bars, Figure
from largebatch.records.figures.optimizer_names import optimizer_name, optimizer_places

# Okabe and Ito 2008, the two lightest darkened: 3 : 1 at least on white and on the page's dark background.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A87400", "#BE5F93", "#3A8FC7", "#7A7F85")
_MOST_TICKS = 6  # of an axis of epochs


# Batch sizes, from small and cold to large and warm: no optimizer has one of these.
_BATCH_COLOURS = ("#6A70C4", "#4D8FD1", "#2E9AA6", "#4E9F5B", "#98902F", "#C97B3A", "#C75C6A")
_FIRST_BATCH = 1000  # place of the first batch size


def colour_of(place: int) -> str:
    """The colour at a place; where there are more places than colours they begin anew, in another pattern of dashes."""
    colours = COLOURS if place < _FIRST_BATCH else _BATCH_COLOURS
    return colours[place % _FIRST_BATCH % len(colours)]


def dash_of(place: int) -> int:
    """The pattern of dashes at a place: another one once the colours are used up."""
    return place % _FIRST_BATCH // len(COLOURS)


def batch_series(size: int) -> str:
    """The name of the series of runs with this global batch size, by which it has one colour on a page."""
    return f"batch {size:,}"


def batch_places(sizes: Iterable[int]) -> dict[str, int]:
    """Series of a batch size -> place of its colour; of few sizes the colours are far apart.

    >>> list(batch_places([64, 16, 32]).values())
    [1000, 1003, 1006]
    """
    ordered, most = sorted(set(sizes)), len(_BATCH_COLOURS)
    apart = (most - 1) / (len(ordered) - 1) if 1 < len(ordered) <= most else 1
    return {batch_series(size): _FIRST_BATCH + round(number * apart) for number, size in enumerate(ordered)}


def colour_places(figures: Sequence[Figure], fixed: Mapping[str, int] | None = None) -> list[dict[str, int]]:
    """Series -> place of its colour in a palette, for each of several figures that stand together.

    A series has one colour in all of them. Where they have more series than there are colours, only those that occur in
    several figures do, and the others of each figure take what is left. Bars have their own.

    Args:
        figures: side by side, or below each other.
        fixed: series in lower case -> place that is its own wherever it is drawn. Optimizers that the package knows
            have theirs without being named here.

    >>> from largebatch.records.figures.diagram import Axis, Line
    >>> first, second = (Diagram("d", "", Axis("x"), Axis("y"), tuple(Line(label, [1], [1]) for label in labels))
    ...                  for labels in (("train", "LAMB"), ("validation", "train")))
    >>> colour_places([first, second])
    [{'train': 0, 'LAMB': 2}, {'validation': 1, 'train': 0}]
    """
    fixed = {**optimizer_places(), **batch_places(_batch_sizes(figures)), **(fixed or {})}
    own = [list(dict.fromkeys(_series(figure))) for figure in figures]
    is_apart = [isinstance(figure, Bars) for figure in figures]
    found = Counter(name for names, apart in zip(own, is_apart, strict=True) if not apart for name in names)
    shared = [name for name, count in found.items() if count > 1 or len(found) <= len(COLOURS)]
    places = _places(shared if len(shared) <= len(COLOURS) else [], fixed)
    return [
        _places(names, fixed, {} if apart else {name: places[name] for name in names if name in places})
        for names, apart in zip(own, is_apart, strict=True)
    ]


def _batch_sizes(figures: Sequence[Figure]) -> set[int]:
    lines = (line for figure in figures if isinstance(figure, Diagram) for line in figure.lines)
    return {line.batch for line in lines if line.batch is not None}


def _series(figure: Figure) -> list[str]:
    if isinstance(figure, Bars):
        return [*figure.labels, *(bar.series for bar in figure.bars)]
    return [one.series for one in (figure.lines if isinstance(figure, Diagram) else figure.trails)]


def _places(names: Sequence[str], fixed: Mapping[str, int], taken: Mapping[str, int] | None = None) -> dict[str, int]:
    own = {name: fixed.get(optimizer_name(name).lower()) for name in names}
    known = {name: place for name, place in own.items() if place is not None} | dict(taken or {})
    free = (place for place in itertools.count() if place not in known.values())
    return {name: known[name] if name in known else next(free) for name in names}


def legend_labels(figure: Figure) -> list[str]:
    """The entries of a legend: none is repeated, and points of a series with a named curve have none."""
    if isinstance(figure, Bars):
        return list(dict.fromkeys(bar.label for bar in figure.bars if bar.start != bar.end))
    if isinstance(figure, Surface):
        return [trail.label for trail in figure.trails]
    named = {line.series for line in figure.lines if not line.is_points and line.label != line.series}
    return list(dict.fromkeys(line.label for line in figure.lines if line.label not in named))


def legend_of_all(figures: Sequence[Figure]) -> int | None:
    """The place of the figure whose legend serves for all of them; None where each needs its own, or none has any."""
    legends = [legend_labels(figure) for figure in figures]
    if len(figures) < 2 or any(isinstance(one, Bars) for one in figures):
        return None
    most = max(range(len(legends)), key=lambda place: len(legends[place]))
    return most if len(legends[most]) > 1 and all(set(one) <= set(legends[most]) for one in legends) else None


def epoch_ticks(most_samples: float, samples_per_epoch: float) -> dict[float, str]:
    """Ticks of an axis of epochs: samples -> epoch, six at most.

    >>> epoch_ticks(1000, 100)
    {0.0: '0', 200.0: '2', 400.0: '4', 600.0: '6', 800.0: '8', 1000.0: '10'}
    """
    epochs = most_samples / samples_per_epoch
    if not epochs > 0:
        return {}
    magnitude = 10.0 ** math.floor(math.log10(epochs / (_MOST_TICKS - 1)))
    apart = next(step * magnitude for step in (1, 2, 5, 10) if epochs / (step * magnitude) <= _MOST_TICKS - 1)
    count = int(epochs / apart + 1e-9) + 1
    return {place * apart * samples_per_epoch: f"{place * apart:g}" for place in range(count)}
