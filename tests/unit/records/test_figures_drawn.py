"""Every mark of a figure, drawn as a PNG and for plotly: one description, and the same values in both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.image import imread

from largebatch.records.figures.diagram import Axis, Diagram, Line, Surface, Trail
from largebatch.records.figures.draw_plotly import plotly_figure
from largebatch.records.figures.draw_png import draw_panels, draw_png, sheet_of
from largebatch.records.figures.figure import Bar, Bars, Figure, from_record
from largebatch.records.figures.legends import colour_places, legend_labels

SEEN = Axis("samples seen")
BANDS = Diagram(
    "loss",
    "loss of $5 runs",
    Axis("samples seen", "samples", log=True),
    Axis("loss", log=True),
    (
        Line("measured", np.array([1, 10, 100]), np.array([3.0, 2.0, np.nan]), [2.5, 1.5, 1], [3.5, 2.5, 2], "both"),
        Line("theory", [1, 10, 100], [3, None, 1.0], style="dashed"),
        Line("seeds", [1, 10], [2.0, 1.0], [1.0, 0.9], [4.0, 1.2], "points"),
    ),
    "Bands: 95 %.",
)
STACK = Diagram(
    "stack", "time", SEEN, Axis("time", "s", low=0, high=0.5),
    (
        Line("data", [100, 200, 300], [0.1, 0.2, 0.1], style="stack"),
        Line("compute", [100, 200, 300], [0.1, None, 0.2], style="stack"),
        Line("raw", [100, 300], [0.1, 0.4], style="faint", group="raw"),
        Line("raw, smoothed", [100, 300], [0.2, 0.3], group="raw"),
        Line("batch", [100, 300], [0.1, 0.3], style="steps"),
    ),
    samples_per_epoch=100,
)  # fmt: skip
FALLS = Diagram("falls", "", Axis("loss", falls=True), Axis("gap"), (Line("a", [2, 1], [0, 1]),))
WATERFALL = Bars(
    "parts", "what lies between", Axis("loss"), Axis("part"), ("training", "easier", "harder"),
    (Bar(0, 2, 2, text="2"), Bar(1, 2, 1, "better", 0.5, 1.5, "-1"), Bar(2, 1, 4, "worse", text="+3")),
    connected=True, labels=("", "worse", "better"),
)  # fmt: skip
LANDSCAPE = Surface(
    "landscape", "loss", Axis("w0"), Axis("w1"), Axis("loss", log=True), [0, 1, 2], [0, 1],
    [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], (Trail("SGD", [0, 1], [0, 1]),), contours=True,
)  # fmt: skip
LAYERS = Surface(
    "layers", "trust ratio", SEEN, Axis("layer"), Axis("ratio"), [1, 10], [0, 1], [[1, None], [2, 3]],
    row_names=("first", "second"),
)  # fmt: skip
FLAT = Surface("flat", "", Axis("a"), Axis("b"), Axis("z", log=True), [0, 1], [0, 1], [[1, 1], [1, 1]], contours=True)
ALL = (BANDS, STACK, FALLS, WATERFALL, LANDSCAPE, LAYERS, FLAT)
EACH = pytest.mark.parametrize("figure", ALL, ids=lambda figure: figure.name)


def panel(figure: Figure) -> Axes:
    return sheet_of([figure]).axes[0]


def traces(figure: Figure) -> dict[str, Any]:
    return {one["name"]: one for one in plotly_figure(figure)["data"] if "name" in one}


@EACH
def test_a_figure_survives_json(figure: Figure):
    record = json.loads(json.dumps(figure.record(), allow_nan=False))
    assert from_record(record).record() == record
    assert (type(from_record(record)), from_record(record).title) == (type(figure), figure.title)


@EACH
def test_a_figure_is_drawn_under_its_name_and_ready_for_the_page(figure: Figure, tmp_path: Path):
    pixels = imread(draw_png(figure, tmp_path))
    assert (tmp_path / f"{figure.name}.png").exists()
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20  # more than an empty sheet
    drawn = plotly_figure(figure)
    json.dumps(drawn, allow_nan=False)
    titles = [drawn["layout"][key]["title"]["text"] for key in ("xaxis", "yaxis")]
    assert titles == [figure.x.label, figure.y.label] if not figure.x.unit + figure.y.unit else all(titles)


def test_plotly_itself_accepts_every_mark():
    from plotly.graph_objects import Figure as PlotlyFigure

    for figure in ALL:
        drawn = plotly_figure(figure)
        PlotlyFigure(data=drawn["data"], layout=drawn["layout"])


def test_stacked_lines_are_areas_on_top_of_each_other():
    first, second = (np.array(area.get_paths()[0].vertices) for area in panel(STACK).collections)
    assert (first[:, 1].min(), first[:, 1].max()) == (0.0, 0.2)
    assert {(x, round(y, 6)) for x, y in second.tolist()} >= {(100, 0.1), (100, 0.2), (200, 0.2), (300, 0.3)}
    drawn = traces(STACK)
    assert {drawn[name]["stackgroup"] for name in ("data", "compute")} == {"all"}
    assert drawn["compute"]["y"] == [0.1, None, 0.2]
    with pytest.raises(ValueError, match="stacked lines differ in x"):
        Diagram("d", "", SEEN, SEEN, (Line("a", [1], [1], style="stack"), Line("b", [2], [1], style="stack")))


def test_raw_values_are_thin_in_the_colour_of_their_smoothed_course_and_have_no_entry():
    raw, smoothed, batch = panel(STACK).get_lines()
    assert raw.get_color() == smoothed.get_color() != batch.get_color()
    assert raw.get_linewidth() < smoothed.get_linewidth()
    assert legend_labels(STACK) == ["data", "compute", "raw, smoothed", "batch"]
    drawn = traces(STACK)
    assert (drawn["raw"]["showlegend"], drawn["raw"]["legendgroup"]) == (False, "raw, smoothed")
    assert drawn["raw"]["line"]["color"] == drawn["raw, smoothed"]["line"]["color"]


def test_a_value_in_steps_holds_since_the_point_before():
    assert panel(STACK).get_lines()[2].get_drawstyle() == "steps-pre"
    assert traces(STACK)["batch"]["line"]["shape"] == "vh"


def test_epochs_stand_above_the_samples_that_they_end_with():
    ax = panel(STACK)
    (top,) = ax.child_axes
    assert top.get_xlabel() == "epochs"
    shown = {label.get_text(): place for place, label in zip(top.get_xticks(), top.get_xticklabels(), strict=True)}
    assert shown["3"] == 300
    above = plotly_figure(STACK)["layout"]["xaxis2"]
    assert dict(zip(above["ticktext"], above["tickvals"], strict=True))["3"] == 300
    assert (above["matches"], above["side"]) == ("x", "top")
    assert "xaxis2" not in plotly_figure(FALLS)["layout"]


def test_an_axis_has_the_ends_that_it_is_given_and_falls_where_it_is_told():
    assert panel(STACK).get_ylim() == (0, 0.5)
    assert plotly_figure(STACK)["layout"]["yaxis"]["range"] == [0, 0.5]
    left, right = panel(FALLS).get_xlim()
    assert left > right
    assert plotly_figure(FALLS)["layout"]["xaxis"]["autorange"] == "reversed"


def test_each_bar_of_a_waterfall_begins_where_the_one_above_ends():
    ax = panel(WATERFALL)
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(2, -1), (1, 3)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["training", "easier", "harder"]
    assert ax.yaxis_inverted()
    assert [text.get_text() for text in ax.texts] == ["2", "-1", "+3"]
    drawn = plotly_figure(WATERFALL)
    better, worse = (traces(WATERFALL)[name] for name in ("better", "worse"))
    assert (better["base"], better["x"], worse["base"], worse["x"]) == ([2], [-1], [1], [3])
    assert (better["error_x"]["array"], better["error_x"]["arrayminus"]) == ([0.5], [0.5])
    assert drawn["layout"]["yaxis"]["ticktext"] == ["training", "easier", "harder"]
    assert drawn["layout"]["yaxis"]["autorange"] == "reversed"


def test_bars_have_the_colours_of_their_labels_whichever_comes_first():
    assert colour_places([WATERFALL]) == [{"": 0, "worse": 1, "better": 2}]
    better, worse = (to_hex(bar.get_facecolor()) for bar in panel(WATERFALL).patches)
    assert (better, worse) == ("#009e73", "#d55e00")


def test_rows_of_a_map_have_names_and_the_first_is_on_top():
    ax = panel(LAYERS)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    assert ax.yaxis_inverted()
    cells = np.ma.asarray(ax.collections[0].get_array()).reshape(2, 2)
    assert cells.mask.tolist() == [[False, True], [False, False]]
    drawn = plotly_figure(LAYERS)
    assert drawn["data"][0]["z"] == [[1, None], [2, 3]]
    assert (drawn["layout"]["yaxis"]["ticktext"], drawn["layout"]["yaxis"]["autorange"]) == (
        ["first", "second"],
        "reversed",
    )
    with pytest.raises(ValueError, match="1 names for 2 rows"):
        Surface("s", "", SEEN, SEEN, SEEN, [1], [0, 1], [[1], [2]], row_names=("a",))


def test_cells_of_a_logarithmic_map_end_halfway_on_its_scale():
    """Four colours in four quarters: cells of one size, though 1, 4 and 2, 32 are not equally far from the middle."""
    corners = [[1.0, 2.0], [3.0, 4.0]]
    map_ = Surface("map", "", Axis("x", log=True), Axis("y", log=True), Axis("z"), [1, 4], [2, 32], corners)
    (cells,) = panel(map_).collections
    assert cells.get_coordinates()[0, :, 0].tolist() == pytest.approx([0.5, 2, 8])
    assert cells.get_coordinates()[:, 0, 1].tolist() == pytest.approx([0.5, 8, 128])


def test_panels_stand_side_by_side_under_one_title(tmp_path: Path):
    one = imread(draw_png(BANDS, tmp_path))
    three = imread(draw_panels([BANDS, LANDSCAPE, LAYERS], tmp_path / "new" / "all.png", title="all"))
    assert three.shape[1] > 2 * one.shape[1]
    sheet = sheet_of([BANDS, STACK], "all of $5")
    assert (sheet.get_suptitle(), sheet.axes[0].get_title()) == (r"all of \$5", r"loss of \$5 runs")


def test_panels_of_the_same_lines_share_their_colours_and_one_legend():
    lines = tuple(Line(label, [1, 2], [1, 2]) for label in ("a", "b"))
    panels = [Diagram(name, name, SEEN, SEEN, lines[:count]) for name, count in (("one", 1), ("both", 2))]
    sheet = sheet_of(panels)
    assert [text.get_text() for text in sheet.legends[0].get_texts()] == ["a", "b"]
    assert [ax.get_legend() for ax in sheet.axes] == [None, None]
    assert len({ax.get_lines()[0].get_color() for ax in sheet.axes}) == 1
    each = sheet_of([panels[1], Diagram("c", "", SEEN, SEEN, (Line("c", [1], [1]), Line("d", [1], [1])))])
    assert (len(each.legends), [len(ax.get_legend().get_texts()) for ax in each.axes]) == (0, [2, 2])


def test_more_lines_than_colours_are_told_apart_by_dashes():
    lines = tuple(Line(str(n), [1, 2], [n, n]) for n in range(9))
    figure = Diagram("d", "", SEEN, SEEN, lines)
    looks = {(line.get_color(), line.get_linestyle()) for line in panel(figure).get_lines()}
    assert len(looks) == 9
    assert len({(one["line"]["color"], one["line"]["dash"]) for one in plotly_figure(figure)["data"]}) == 9


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
