"""The first screen of a page with a study: three numbers, one picture, and one colour per optimizer everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from largebatch.__main__ import main
from tests.browser.visiting import Visit, wait_until
from tests.unit.records.report_folders import write_run

# Steps to a target = S_min (1 + B_crit / B): LAMB is ahead of SGD up to batch 64, and behind it from batch 256 on.
CURVES = {"lars": (60.0, 100.0), "sgd": (10.0, 200.0), "lamb": (20.0, 40.0)}
SIZES = (16, 64, 256, 1024, 4096)
INSIDE = (
    "([selector, height]) => [...document.querySelectorAll(selector)].map((one) => one.getBoundingClientRect())"
    ".filter((box) => box.width > 0 && box.top >= 0 && box.bottom <= height && box.right <= innerWidth).length"
)


@pytest.fixture(scope="module")
def visit(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    folder = tmp_path_factory.mktemp("study")
    rows = [
        f"{name},{seed},{size},{least * (1 + b_crit / size) * (1 + 0.01 * (seed - 1)):.3f}"
        for name, (least, b_crit) in CURVES.items() for size in SIZES for seed in range(3)
    ]  # fmt: skip
    (folder / "steps.csv").write_text("\n".join(["optimizer,seed,batch_size,steps", *rows]))
    assert main(["study", "analyze", str(folder / "steps.csv"), "--out", str(folder / "study")]) == 0
    for seed in range(3):
        for optimizer, loss in (("LAMB", 0.1), ("SGD", 0.2)):
            for batch in (32, 512):
                accuracy = 0.9 + 0.002 * seed - loss * (batch == 512)
                write_run(
                    folder / f"{optimizer}{batch}{seed}", batch, optimizer=optimizer, accuracy=accuracy, seed=seed
                )
    assert main(["report", str(folder), "--out", str(folder / "page.html")]) == 0
    found = Visit(browser, folder / "page.html", viewport={"width": 1440, "height": 900})
    yield found
    found.page.close()


def test_the_first_screen_holds_three_numbers_and_the_picture_at_every_size(visit: Visit):
    for width, height in ((1440, 900), (820, 1180), (390, 844)):
        visit.page.set_viewport_size({"width": width, "height": height})
        assert visit.page.evaluate(INSIDE, [".number", height]) == 3, width
        assert visit.page.evaluate(INSIDE, ["#overview figure h3", height]) == 1, width
        wait_until(visit.page, f"document.documentElement.scrollWidth === {width}")  # figures follow the window
    numbers = visit.page.locator(".number")
    # 20 (16 + 40) samples of LAMB at batch 16; LAMB loses 10 points at batch 512; SGD leads at the largest batch.
    assert numbers.locator(".value").all_text_contents() == ["batch 16", "10 points", "200 samples"]
    assert "LAMB: 1,120 samples to the target" in str(numbers.nth(0).text_content())
    assert "95 %: 9.5 to 10" in str(numbers.nth(1).text_content())
    assert "SGD: supported" in str(numbers.nth(2).text_content())
    told = str(visit.page.locator(".verdict").text_content())
    assert "Fewest steps to the target: LAMB at batch 16 to 64, SGD at batch 256 to 4,096." in told
    assert re.search(r"At batch 4,096 SGD needs 10\.5 steps to the target, LAMB 20\.\d+, LARS 61\.\d+;", told), told
    assert visit.said == []


def test_an_optimizer_has_one_colour_in_all_figures_and_in_the_filters(visit: Visit):
    colours: dict[str, set[str]] = {}
    for figure in json.loads(visit.page.evaluate("JSON.stringify(DATA.figures)")).values():
        for trace in figure["data"]:
            if (name := (trace.get("meta") or {}).get("optimizer")) and trace.get("hoverinfo") != "skip":
                colours.setdefault(name, set()).add(trace["line"]["color"])
    assert {name: len(found) for name, found in colours.items()} == {"SGD": 1, "LARS": 1, "LAMB": 1}
    assert len(set.union(*colours.values())) == 3
    for name in ("SGD", "LAMB"):
        (shown,) = colours[name]
        dot = visit.page.locator(f".facets [data-optimizer={name}] i").get_attribute("style")
        assert dot == f"background:{shown}"


def test_printing_unfolds_what_was_folded_and_folds_it_again(visit: Visit):
    folded = visit.page.locator("main details:not([open])").count()
    assert folded >= 1
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert visit.page.locator("main details:not([open])").count() == 0
    empty = (
        "[...document.querySelectorAll('figure')].filter((one) => one.offsetParent && !one.querySelector('.xtitle'))"
    )
    wait_until(visit.page, f"{empty}.length === 0")
    visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert visit.page.locator("main details:not([open])").count() == folded
    assert visit.said == []
