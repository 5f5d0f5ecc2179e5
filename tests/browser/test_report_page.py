"""The page of `largebatch report` in a headless Chromium: it draws, answers, and needs no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from largebatch.__main__ import main
from largebatch.records.figures.diagram import Axis, Diagram, Line, Surface, Trail
from largebatch.records.figures.figure import Bar, Bars
from tests.browser.visiting import Visit, wait_until
from tests.unit.records.report_folders import write_json, write_run

NOISE = {
    "noise_scale/b_simple": 96.0,
    "noise_scale/ci_low": 64.0,
    "noise_scale/ci_high": 128.0,
    "noise_scale/trace": 8.0,
}
LANDSCAPE = Surface(
    "paths", "Paths over the loss", Axis("first weight"), Axis("second weight"), Axis("loss"), [0, 1], [0, 1],
    [[1.0, 2.0], [3.0, 4.0]], (Trail("SGD", [0, 0.5, 1], [0, 0.25, 1]), Trail("batch", [1, 0], [1, 0])), True,
)  # fmt: skip
STACK = Diagram(
    "stack", "Time of a step", Axis("samples seen"), Axis("time", "s", low=0),
    tuple(Line(name, [0, 400], [0.1, 0.2], style="stack") for name in ("data", "compute")), samples_per_epoch=100,
)  # fmt: skip
WATERFALL = Bars(
    "gap", "Parts of the gap", Axis("loss"), Axis("part"), ("training", "easier", "validation"),
    (Bar(0, 2, 2, text="2"), Bar(1, 2, 1, "better", 0.5, 1.5, "-1"), Bar(2, 1, 1, text="1")), connected=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for number, batch in enumerate((16, 32, 64)):
        write_run(folder / f"run{number}", batch, step_s=0.1 + batch / 100, width=batch, extra=NOISE)
    write_json(folder / "a" / "textbook.json", {"title": "Ravines", "figures": [LANDSCAPE.record()]})
    write_json(folder / "b" / "textbook.json", {"title": "Marks", "figures": [STACK.record(), WATERFALL.record()]})
    write_run(folder / "<script>document.title='attacked'<", 64, seed=1, optimizer="LAMB")
    assert main(["report", str(folder), "--out", str(folder / "page.html")]) == 0
    return folder / "page.html"


@pytest.fixture(scope="module")
def opened(browser: Any, page_file: Path) -> Iterator[tuple[Visit, list[str]]]:
    """The page with all of its charts, which costs a browser seconds, and what it said meanwhile."""
    found = Visit(browser, page_file, viewport={"width": 1200, "height": 900}, color_scheme="light")
    found.draw_all()
    yield found, list(found.said)
    found.page.close()


@pytest.fixture
def visit(opened: tuple[Visit, list[str]]) -> Visit:
    """The same page for all; each test touches a part of its own."""
    opened[0].said.clear()
    return opened[0]


@pytest.fixture(scope="module")
def phone(browser: Any, page_file: Path) -> Iterator[Visit]:
    """Small, dark and without motion."""
    screen = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}
    found = Visit(browser, page_file, color_scheme="dark", reduced_motion="reduce", **screen)
    yield found
    found.page.close()


def test_every_chart_is_drawn_with_both_axes_and_without_a_word_on_the_console(
    visit: Visit, opened: tuple[Visit, list[str]]
):
    charts = visit.page.locator("figure[data-figure]:visible")
    assert charts.count() >= 12
    titles = visit.page.evaluate(
        "[...document.querySelectorAll('figure[data-figure]')].filter((one) => one.offsetParent)"
        ".map((one) => ['.xtitle', '.ytitle'].map((axis) => one.querySelector(axis).textContent))"
    )
    assert len(titles) == charts.count()
    assert all(x and y for x, y in titles)
    assert opened[1] == visit.said == []


def test_areas_are_stacked_epochs_stand_above_and_a_waterfall_has_its_bars_and_texts(visit: Visit):
    stack, waterfall = visit.page.locator("#textbook-1 figure").all()
    assert stack.locator(".x2title").text_content() == "epochs"
    assert stack.locator(".x2tick").all_text_contents() == ["0", "1", "2", "3", "4"]
    assert stack.locator(".fills path.js-fill").count() == 2
    assert waterfall.locator(".bars .point").count() == 1
    assert waterfall.locator(".textpoint").all_text_contents() == ["  2", "  -1", "  1"]
    assert waterfall.locator(".ytick").all_text_contents() == ["training", "easier", "validation"]


def test_no_request_leaves_the_page(visit: Visit, page_file: Path):
    assert {url for url in visit.asked if not url.startswith(("data:", "blob:"))} == {page_file.as_uri()}
    assert visit.page.get_by_role("button", name="Share").count() == 0  # plotly would upload the chart
    refused = visit.page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')")
    assert refused == "refused"
    assert all("Content Security Policy" in line for line in visit.said)


def test_a_run_that_is_called_like_a_script_is_only_a_name(visit: Visit):
    assert "attacked" not in visit.page.title()
    assert visit.page.locator("#runs").get_by_text("<script>document.title='attacked'<").count() == 1


def test_the_slider_changes_numbers_and_figures_by_the_keyboard_alone(visit: Visit):
    block = visit.page.locator("[data-explorer='0']")
    slider, told = block.locator("input[type=range]"), block.locator("output")
    chart = block.locator("figure[data-figure]").nth(1)
    chart.scroll_into_view_if_needed()
    chart.locator(".shapelayer path").wait_for(state="attached")  # a vertical line has no area to be visible by
    before = chart.locator(".shapelayer path").get_attribute("d")
    cells = [row.locator("td").nth(1).text_content() for row in block.locator("tbody tr").all()]
    kind = block.locator("tbody tr").nth(1).locator("td").nth(3)
    assert told.text_content() == "32 samples"
    assert cells[0] == "32 steps"
    slider.focus()
    visit.page.keyboard.press("End")
    assert told.text_content() == "256 samples"
    assert slider.get_attribute("aria-valuetext") == "256 samples"
    assert block.locator("tbody tr").first.locator("td").nth(1).text_content() == "4 steps"
    assert kind.text_content() == "extrapolated"
    wait_until(visit.page, "([chart, d]) => chart.querySelector('.shapelayer path').getAttribute('d') !== d",
                                 arg=[chart.element_handle(), before])  # fmt: skip


def test_any_two_runs_are_compared_over_samples_or_steps(visit: Visit):
    section = visit.page.locator("#two-runs")
    chart = section.locator("figure").first
    chart.scroll_into_view_if_needed()
    chart.locator(".xtitle").wait_for()
    section.get_by_label("First run").select_option(label="run0: batch 16, LARS")
    section.get_by_label("Second run").select_option(label="run2: batch 64, LARS")
    rows = [[cell.text_content() for cell in row.locator("td").all()] for row in section.locator("tbody tr").all()]
    assert rows == [["batch.total", "16", "64"], ["model.width", "16", "64"]]
    assert chart.locator(".legendtext").all_text_contents() == ["first: run0", "second: run2"]
    assert chart.locator(".xtitle").text_content() == "samples seen"
    section.get_by_label("Against").select_option(label="optimizer steps")
    chart.locator(".xtitle", has_text="optimizer steps").wait_for()
    ends = chart.evaluate("(one) => one.querySelector('.plot').data.map((line) => line.x.at(-1))")
    assert ends == [512, 128]
    section.get_by_label("Second run").select_option(label="run0: batch 16, LARS")
    assert section.locator("tbody tr").all_text_contents() == ["none: the runs have the same settings"]
    assert visit.said == []


def test_points_walk_along_their_paths_by_a_slider_or_by_themselves(visit: Visit):
    chart = visit.page.locator("#textbook figure")
    chart.scroll_into_view_if_needed()
    slider, play = chart.locator("input[type=range]"), chart.locator(".walk button")
    slider.focus()
    visit.page.keyboard.press("Home")
    visit.page.keyboard.press("ArrowRight")
    points = (
        "(one) => one.querySelector('.plot').data.filter((trace) => trace.mode === 'markers').map((t) => [t.x, t.y])"
    )
    assert chart.evaluate(points) == [[[0.5], [0.25]], [[0], [0]]]  # the shorter path has ended
    assert slider.get_attribute("aria-valuetext") == "point 1 of 2"
    visit.page.keyboard.press("Home")
    play.click()
    wait_until(visit.page, "(button) => button.textContent === 'Play'", arg=play.element_handle())
    assert slider.input_value() == "2"
    assert chart.evaluate(points)[0] == [[1], [1]]
    assert visit.said == []


def test_on_a_phone_nothing_is_wider_than_the_screen(phone: Visit):
    phone.draw_all()
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    assert phone.said == []


def test_who_wants_less_motion_is_offered_none(phone: Visit):
    chart = phone.page.locator("#textbook figure")
    chart.scroll_into_view_if_needed()
    chart.locator("input[type=range]").wait_for()
    assert not chart.locator(".walk button").is_visible()


HIDDEN = (
    "(one) => [...new Set(one.querySelector('.plot').data"
    ".filter((line) => line.visible === false && line.hovertemplate)"
    ".map((line) => line.meta.optimizer + ' ' + line.meta.batch))].sort()"
)


def test_an_entry_of_a_legend_and_the_bar_filter_every_figure_and_the_rows(visit: Visit):
    page = visit.page
    charts = [one for key in ("training", "batches") for one in page.locator(f"#{key} figure:visible").all()]
    rows = page.locator("#runs tbody tr:visible")
    assert (len(charts) >= 8, rows.count()) == (True, 4)
    in_legend, above = (page.locator(f"{place} [data-optimizer=LAMB]") for place in ("#training .legend", ".facets"))
    in_legend.click()
    assert above.get_attribute("aria-pressed") == in_legend.get_attribute("aria-pressed") == "false"
    found = [chart.evaluate(HIDDEN) for chart in charts]
    assert set(map(tuple, found)) == {("LAMB 64",), ("LAMB null",)}  # over training, and against batch size
    assert rows.count() == 3
    above.click()
    page.locator(".facets [data-batch='32']").click()
    assert charts[0].evaluate(HIDDEN) == ["LARS 32"]
    assert rows.count() == 3
    page.locator(".facets [data-batch='32']").click()
    assert [chart.evaluate(HIDDEN) for chart in charts] == [[]] * len(charts)
    assert page.locator("#training .legendtext").count() == 0
    assert visit.said == []


def test_titles_of_axes_are_inside_their_figures_and_the_explorer_does_not_scroll_on_a_phone(phone: Visit):
    phone.draw_all()
    outside = phone.page.evaluate(
        "[...document.querySelectorAll('.xtitle, .ytitle')].filter((title) => {"
        " const text = title.getBoundingClientRect(), all = title.closest('.plot').getBoundingClientRect();"
        " return text.top < all.top - 1 || text.bottom > all.bottom + 1 || text.left < all.left - 1"
        " || text.right > all.right + 1; }).map((title) => title.textContent)"
    )
    assert outside == []
    table = phone.page.locator(".explorer .table").first
    assert table.evaluate("(one) => one.scrollWidth - one.clientWidth") == 0


def test_printing_draws_all_figures_in_light_colours_as_wide_as_a_sheet(browser: Any, page_file: Path):
    """On paper nothing comes into view: figures below the window were empty."""
    visit = Visit(browser, page_file, viewport={"width": 900, "height": 500}, color_scheme="dark")
    shown = "[...document.querySelectorAll('figure')].filter((one) => one.offsetParent)"
    empty = f"{shown}.filter((one) => !one.querySelector('.xtitle')).length"
    assert visit.page.evaluate(empty) > 8
    visit.page.evaluate(
        "addEventListener('beforeprint', () => { window.atPrint = [document.documentElement.dataset.theme,"
        " Math.max(...[...document.querySelectorAll('.main-svg')].map((one) => one.getBoundingClientRect().width))]; })"
    )
    assert visit.page.pdf().startswith(b"%PDF")
    assert visit.page.evaluate(empty) == 0
    assert visit.page.evaluate("window.atPrint") == ["light", 660]
    wait_until(visit.page, "document.documentElement.dataset.theme === 'dark'")
    assert visit.said == []
    visit.page.close()


def test_two_hundred_runs_are_drawn_without_a_word(browser: Any, tmp_path: Path):
    for number in range(200):
        write_run(tmp_path / "runs" / f"run{number}", 2 ** (4 + number % 6), seed=number, num_rows=100)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size < 12e6
    visit = Visit(browser, tmp_path / "page.html", viewport={"width": 1200, "height": 900})
    visit.draw_all()
    assert visit.page.locator("#runs tbody tr").count() == 200
    assert visit.said == []
    visit.page.close()


def test_the_theme_follows_the_reader_and_the_button(phone: Visit):
    colour = "getComputedStyle(document.body).backgroundColor"
    text = "getComputedStyle(document.querySelector('.xtitle')).fill"
    phone.page.locator("figure").first.scroll_into_view_if_needed()
    phone.page.locator(".xtitle").first.wait_for()
    dark, dark_text = phone.page.evaluate(colour), phone.page.evaluate(text)
    phone.page.locator("#theme").focus()
    phone.page.keyboard.press("Enter")
    wait_until(phone.page, f"{text} !== '{dark_text}'")
    assert phone.page.evaluate(colour) == "rgb(255, 255, 255)" != dark
    assert phone.said == []
