"""The page of runs that were really trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from largebatch.__main__ import main
from tests.browser.visiting import Visit

RUN = [
    "data=digits", "model=mlp", "model.hidden=[16]", "length=3ep", "scaling.base_lr=0.1", "logger=none",
    "observers.evaluation.every=1ep", "observers.noise_scale.every=1", "observers.noise_scale.window=20",
    "observers.progress=false",
]  # fmt: skip
SIZES = (32, 128, 512)
TABLE = (
    "(one) => [...one.querySelectorAll('tbody tr')].map((row) => [...row.cells].slice(0, 2).map((c) => c.textContent))"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for size in SIZES:
        assert main(["train", *RUN, f"batch.total={size}", "batch.max_micro=16", f"run.dir={folder / str(size)}"]) == 0
    assert main(["report", str(folder), "--out", str(folder / "page.html")]) == 0
    return folder


def test_the_page_of_trained_runs_draws_their_own_numbers_without_a_word(browser: Any, folder: Path):
    visit = Visit(browser, folder / "page.html", viewport={"width": 1200, "height": 900})
    visit.draw_all()
    assert visit.said == []
    block = visit.page.locator(".explorer").first
    slider, told = block.locator("input[type=range]"), block.locator("output")
    slider.focus()
    visit.page.keyboard.press("Home")
    found = {}
    for _ in range(int(slider.get_attribute("max") or 0) + 1):
        found[told.text_content()] = dict(block.evaluate(TABLE))
        visit.page.keyboard.press("ArrowRight")
    for size in SIZES:
        summary = json.loads((folder / str(size) / "summary.json").read_text())
        shown = found[f"{size} samples"]
        assert float(shown["validation accuracy"]) == pytest.approx(summary["eval/val_accuracy"], rel=5e-3)
        assert float(shown["validation loss"]) == pytest.approx(summary["eval/val_loss"], rel=5e-3)
        assert visit.page.locator(f"a[href='{size}/config.yaml']").count() >= 1
    assert visit.said == []
