"""The page of `largebatch report`: complete, self-contained, and safe against what runs are called."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from largebatch.__main__ import main
from largebatch.records.figures.diagram import Axis, Diagram, Line, Surface, Trail
from largebatch.records.figures.draw_plotly import plotly_figure
from tests.unit.records.report_folders import write_json, write_run

STEPS, LOSS = Axis("steps", "steps", log=True), Axis("loss", log=True)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def before_the_scripts(page: str) -> str:
    return page[: page.index('<script type="application/json"')]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_run(folder / "runs" / "<script>alert(1)</script>".replace("/", "_"), 32)
    write_run(folder / "runs" / "b & c", 64, optimizer="<img src=x>")
    (folder / "runs" / "torn").mkdir()
    (folder / "runs" / "torn" / "metrics.jsonl").write_text("{")
    assert main(["report", str(folder), "--out", str(folder / "out" / "r.html"), "--title", "</title><b>"]) == 3
    return (folder / "out" / "r.html").read_text()


def test_texts_of_runs_are_escaped_everywhere(page: str):
    static = before_the_scripts(page)
    assert "&lt;script&gt;alert(1)&lt;_script&gt;" in static
    assert static.count("<script") == 0
    assert "<img" not in page[: page.index("plotly.js v")]
    assert "<title>&lt;/title&gt;&lt;b&gt;</title>" in static
    embedded = page[page.index('id="data">') :].partition("</script>")[0]
    assert "<" not in embedded


def test_plotly_shows_a_name_as_it_is_and_no_tag(page: str):
    texts = json.dumps(data_of(page)["figures"])
    assert "&lt;script&gt;alert(1)&lt;_script&gt;" in texts
    assert "<script" not in texts


def test_the_page_forbids_every_request(page: str):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    allowed = dict(part.strip().split(" ", 1) for part in policy[1].split(";"))
    assert allowed == {
        "default-src": "'none'", "script-src": "'unsafe-inline'", "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
    }  # fmt: skip


def test_links_lead_to_the_files_of_the_run_from_where_the_page_is(page: str):
    assert 'href="../runs/b%20%26%20c/config.yaml"' in page
    assert "torn" in before_the_scripts(page)
    assert "plan.json is missing" in page


def test_every_figure_has_axes_and_a_place(page: str):
    figures = data_of(page)["figures"]
    assert set(figures) == set(re.findall(r'data-figure="([^"]*)"', page))
    assert len(figures) >= 8
    for figure in figures.values():
        assert all(figure["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis"))


def test_nothing_usable_is_wrong_input_told_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(tmp_path), str(tmp_path / "nowhere"), "--out", str(tmp_path / "r.html")]) == 2
    told = capsys.readouterr().err
    assert f"left out: {tmp_path / 'nowhere'}: does not exist" in told
    assert "nothing of 2 given can be shown" in told
    assert not (tmp_path / "r.html").exists()
    assert main(["report"]) == 2


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path / "a", 32)
    (tmp_path / "file").write_text("")
    assert main(["report", str(tmp_path / "a"), "--out", str(tmp_path / "file" / "r.html")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_lines_of_one_label_share_a_colour_and_a_place_in_the_legend():
    lines = tuple(Line(label, [1, 2], [1.0, 0.5], name=name) for label, name in (("a", "1"), ("b", "2"), ("a", "3")))
    first, second, third = plotly_figure(Diagram("n", "t", STEPS, LOSS, lines))["data"]
    assert first["line"]["color"] == third["line"]["color"] != second["line"]["color"]
    assert [one["showlegend"] for one in (first, second, third)] == [True, True, False]
    assert third["hovertemplate"].endswith("<extra>3</extra>")


def test_a_band_is_drawn_around_its_line_and_stays_on_a_logarithmic_axis():
    line = Line("a", [1, 4], [2.0, 1.0], [0.5, -1.0], [4.0, 3.0])
    band, _ = plotly_figure(Diagram("n", "t", STEPS, LOSS, (line,)))["data"]
    assert (band["x"], band["y"]) == ([1, 4, 4, 1], [0.5, 0.5, 3.0, 4.0])


def test_bands_left_and_right_of_what_was_measured_are_two_areas():
    """Of one polygon plotly would fill what lies between them: what was measured."""
    unknown = [None, None]
    line = Line("a", [1, 2, 4, 8, 16, 32], [1.0, 1.0, *unknown, 1.0, 1.0], [0.5, 0.5, *unknown, 0.5, 0.5],
                [2.0, 2.0, *unknown, 2.0, 2.0])  # fmt: skip
    band, _ = plotly_figure(Diagram("n", "t", STEPS, LOSS, (line,)))["data"]
    assert band["x"] == [1, 2, 2, 1, None, 16, 32, 32, 16]
    assert band["y"] == [0.5, 0.5, 2.0, 2.0, None, 0.5, 0.5, 2.0, 2.0]


@pytest.mark.parametrize(
    ("unit", "low", "high", "dtick", "tickformat"),
    [
        ("s", 0.02, 0.8, "D2", "~g"),  # not 2 and 5
        ("s", 0.00166, 0.00262, "L0.0005", "~g"),  # not 0.002 alone
        ("", 1e-7, 1e-6, "D2", "~g"),  # a loss, not 100n to 1u
        ("", 1e-15, 1e14, 5, None),  # powers of ten
        ("samples", 16, 1296, "D2", "~s"),
        ("steps", 0.6, 400.0, "D2", "~g"),  # no 600m
    ],
)
def test_ticks_of_a_logarithmic_axis_are_whole_numbers_without_prefixes_but_of_counts(
    unit: str, low: float, high: float, dtick: object, tickformat: str | None
):
    figure = Diagram("n", "t", STEPS, Axis("y", unit, log=True), (Line("a", [1, 2], [low, high]),))
    axis = plotly_figure(figure)["layout"]["yaxis"]
    assert (axis["dtick"], axis.get("tickformat")) == (dtick, tickformat)
    assert axis["exponentformat"] == ("SI" if unit == "samples" else "power")
    assert axis["title"]["text"] == (f"y ({unit})" if unit else "y")  # a suffix would stand at powers of ten alone
    assert "ticksuffix" not in axis


def test_an_optimizer_has_one_colour_on_the_whole_page_and_figures_one_legend(tmp_path: Path):
    """In the order of the runs LARS comes first, in the study SGD; batch sizes differ in dashes."""
    for optimizer in ("LARS", "SGD"):
        for batch in (16, 32):
            write_run(tmp_path / f"{optimizer}{batch}", batch, optimizer=optimizer)
    names = ("sgd", "lars")
    curves = [Line(f"{name}: B_crit 40", [16, 32], [9.0, 8.0], group=name) for name in names]
    points = [Line(name, [16, 32], [9.0, 8.0], style="points", group=name) for name in names]
    figure = Diagram("steps_to_target", "", STEPS, STEPS, (*curves, *points))
    record = {"points": [], "fits": [], "figures": [figure.record()], "target": None, "conclusions": []}
    write_json(tmp_path / "study" / "study.json", record)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    figures = data_of(page)["figures"]

    def colours(key: str) -> dict[str, str]:
        return {one["name"]: one["line"]["color"] for one in figures[key]["data"] if one.get("hoverinfo") != "skip"}

    of_batch = colours("batches/accuracy_of_batch")
    assert list(of_batch) == ["SGD", "LARS"]
    assert of_batch["LARS"] != of_batch["SGD"]
    for name, colour in of_batch.items():
        in_study = (name.lower(), f"{name.lower()}: B_crit 40")  # by the name of the config
        assert {colours("study/steps_to_target")[label] for label in in_study} == {colour}
        runs = [one for one in figures["training/train_loss"]["data"] if one["name"].endswith(name)]
        assert {one["line"]["color"] for one in runs} == {colour}
        assert len({one["line"]["dash"] for one in runs}) == 2
    for explored in (one["data"] for key, one in figures.items() if key.startswith("explorer/")):
        assert len({one["line"]["color"] for one in explored if "color" in one["line"]} & set(of_batch.values())) == 1
    training = page[page.index('<section id="training">') : page.index('<section id="batches">')]
    assert re.findall('data-optimizer="([^"]*)" *>', training) == ["SGD", "LARS"]
    assert re.findall('data-batch="([^"]*)"', training) == ["16", "32"]
    assert all(not figures[f"training/{name}"]["layout"]["showlegend"] for name in ("train_loss", "val_accuracy"))
    assert figures["training/loss"]["layout"].get("showlegend", True), "of a run by itself"


def test_the_interval_of_a_point_is_an_error_bar():
    line = Line("a", [1], [2.0], [1.5], [4.0], "points")
    (trace,) = plotly_figure(Diagram("n", "t", STEPS, LOSS, (line,)))["data"]
    assert (trace["mode"], trace["error_y"]["array"], trace["error_y"]["arrayminus"]) == ("markers", [2.0], [0.5])


def test_a_landscape_has_its_logarithm_and_a_point_per_trail_that_can_walk():
    surface = Surface("n", "t", STEPS, STEPS, LOSS, [1, 2], [3], [[1.0, 100.0]], (Trail("SGD", [1, 2], [3, 4]),), True)
    drawn = plotly_figure(surface)
    assert drawn["data"][0]["type"] == "contour"
    assert drawn["data"][0]["z"] == [[0.0, 2.0]]
    (trail,) = drawn["trails"]
    assert drawn["data"][trail["trace"]]["mode"] == "markers"


def test_paths_over_a_landscape_have_the_colours_of_the_lines_of_the_same_order():
    names = ("batch", "stochastic", "mini-batch")
    lines = Diagram("n", "t", STEPS, LOSS, tuple(Line(name, [1, 2], [1, 2]) for name in names))
    trails = tuple(Trail(name, [1, 2], [3, 3]) for name in names)
    over = Surface("n", "t", STEPS, STEPS, LOSS, [1, 2], [3], [[1.0, 100.0]], trails, True)
    colours = []
    for figure in (lines, over):
        traces = [one for one in plotly_figure(figure)["data"] if one.get("mode") == "lines"]
        colours.append({one["name"]: one["line"]["color"] for one in traces if one.get("hoverinfo") != "skip"})
    assert colours[0] == colours[1]
    assert list(colours[0]) == list(names)
