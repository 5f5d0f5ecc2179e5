from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure as MatplotlibFigure

from largebatch.records.figures import diagram_png
from largebatch.records.figures.diagram import (
    Axis,
    Diagram,
    Line,
    Surface,
    Trail,
    colour_places,
    from_record,
    legend_labels,
)
from largebatch.records.figures.diagram_png import draw_panels, draw_png

LINES = Diagram(
    "loss",
    "loss of $5 runs",
    Axis("samples seen", "samples", log=True),
    Axis("loss", log=True),
    (
        Line(
            "measured", np.array([1, 10, 100]), np.array([3.0, 2.0, np.nan]), [2.5, 1.5, 1.0], [3.5, 2.5, 2.0], "both"
        ),
        Line("theory", [1, 10, 100], [3, None, 1.0], style="dashed"),
        Line("seeds", [1, 10], [2.0, 1.0], [1.0, 0.9], [4.0, 1.2], "points"),
    ),
    "Bands: 95 %.",
)
LANDSCAPE = Surface(
    "landscape", "loss", Axis("w0"), Axis("w1"), Axis("loss", log=True), [0, 1, 2], [0, 1],
    [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], (Trail("SGD", [0, 1], [0, 1]),), contours=True,
)  # fmt: skip
HEAT = Surface(
    "heat",
    "loss",
    Axis("lr", log=True),
    Axis("B", "samples", log=True),
    Axis("loss"),
    [1, 10],
    [1, 2],
    [[1, None], [2, 3]],
)


@pytest.mark.parametrize("figure", [LINES, LANDSCAPE, HEAT], ids=lambda figure: figure.name)
def test_a_figure_survives_json(figure: Diagram | Surface):
    record = json.loads(json.dumps(figure.record(), allow_nan=False))
    assert from_record(record).record() == record
    assert from_record(record).title == figure.title


@pytest.mark.parametrize("figure", [LINES, LANDSCAPE, HEAT], ids=lambda figure: figure.name)
def test_a_figure_is_drawn_under_its_name(figure: Diagram | Surface, tmp_path: Path):
    pixels = matplotlib.image.imread(draw_png(figure, tmp_path))
    assert (tmp_path / f"{figure.name}.png").exists()
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20  # more than an empty sheet


def test_panels_stand_side_by_side(tmp_path: Path):
    one = matplotlib.image.imread(draw_png(LINES, tmp_path))
    three = matplotlib.image.imread(draw_panels([LINES, LANDSCAPE, HEAT], tmp_path / "all.png", title="all"))
    assert three.shape[1] > 2 * one.shape[1]


def test_lines_and_bands_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"line 'a': its columns have \[1, 2\] values"):
        Line("a", [1, 2], [1])
    with pytest.raises(ValueError, match="a band has two ends"):
        Line("a", [1], [1], low=[0])


def test_a_surface_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="2 rows of \\[1\\] values for 1 rows of 1"):
        Surface("s", "", Axis("x"), Axis("y"), Axis("z"), [1], [1], [[1], [2]])


@pytest.mark.parametrize(
    "record", [{}, {"type": "pie"}, {"type": "diagram", "x": {}}, {"type": "diagram", "colour": 1}]
)
def test_what_is_no_record_of_a_figure_is_refused(record: dict[str, object]):
    with pytest.raises(ValueError, match="no record of a figure"):
        from_record(record)


def test_cells_of_a_logarithmic_map_end_halfway_on_its_scale(tmp_path: Path):
    """Four colours in four quarters: cells of one size, though 1, 4 and 2, 32 are not equally far from the middle."""
    corners = [[1.0, 2.0], [3.0, 4.0]]
    map_ = Surface("map", "", Axis("x", log=True), Axis("y", log=True), Axis("z"), [1, 4], [2, 32], corners)
    ax = MatplotlibFigure().subplots()
    diagram_png._draw_surface(ax, map_, {})
    (cells,) = ax.collections
    assert cells.get_coordinates()[0, :, 0].tolist() == pytest.approx([0.5, 2, 8])
    assert cells.get_coordinates()[:, 0, 1].tolist() == pytest.approx([0.5, 8, 128])


def test_points_of_a_series_whose_curve_is_named_have_no_entry_of_their_own():
    points = [Line("a", [1], [1], style="points", group="a"), Line("b", [1], [1], style="points", group="b")]
    hidden = Line("b: not reached within", [2], [1], style="points", group="b")
    curve = Line("a: B_crit 40", [1, 2], [1, 1], group="a")
    figure = Diagram("d", "", Axis("x"), Axis("y"), (curve, *points, hidden))
    assert legend_labels(figure) == ["a: B_crit 40", "b", "b: not reached within"]


def test_lines_of_a_group_have_one_colour_and_others_their_own():
    lines = (
        Line("fit of a", [1], [1], group="a"),
        Line("b", [1], [1]),
        Line("a, measured", [1], [1], group="a"),
        Line("b", [2], [1]),
    )
    figure = Diagram("d", "", Axis("x"), Axis("y"), lines)
    assert colour_places([figure]) == [{"a": 0, "b": 1}]
    assert legend_labels(figure) == ["fit of a", "b", "a, measured"]
