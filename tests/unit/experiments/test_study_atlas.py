"""`largebatch study atlas`: published systems by the fit and verdict of a study, with their source."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from largebatch.__main__ import main
from largebatch.experiments.study import TableError
from largebatch.experiments.study.atlas import PUBLISHED, atlas_result, read_atlas

README = (Path(__file__).resolve().parents[3] / "largebatch" / "experiments" / "README.md").read_text()
# Log least squares on the medians, weighted by their runs, by another program: B_crit, and the ends of its interval.
B_CRIT = {
    "ResNet-50 with LARS": (45_529, 40_349, 51_648),
    "BERT-large with LAMB": (12_845, 10_223, 16_562),
    "GPT-3 175B": (16_216, 9_693, 33_937),
    "Llama 3.1 405B": (5_748, 4_820, 6_912),
    "R-GAT": (117_304, 103_278, 133_804),
    "DLRM-DCNv2": (262_993, 188_208, 394_052),
    "Stable Diffusion": (847, 353, 2_146),
    "DeepCAM": (811, 437, 1_630),
    "CosmoFlow": (326, 42, math.inf),
}
SUPPORTED = {"ResNet-50 with LARS", "BERT-large with LAMB", "Llama 3.1 405B", "R-GAT", "DeepCAM"}
EXTRAPOLATED = {"GPT-3 175B", "DLRM-DCNv2"}


def test_critical_batches_are_those_that_another_program_found():
    fits = read_atlas().fits
    assert fits.keys() == B_CRIT.keys() == PUBLISHED.keys()
    for name, expected in B_CRIT.items():
        found = fits[name].b_crit
        assert (found.value, found.low, found.high) == pytest.approx(expected, rel=8e-3), name  # 42 has two digits


def test_the_verdict_follows_the_size_of_the_misfit():
    fits = read_atlas().fits
    assert {name for name, fit in fits.items() if fit.supported} == SUPPORTED
    assert {name for name, fit in fits.items() if fit.verdict.startswith("extrapolated")} == EXTRAPOLATED
    assert fits["ResNet-50 with LARS"].verdict == (
        "supported: predicts each left-out batch size within 9 %, 5 % in the root mean square"
    )
    assert "its interval spans a factor of 6.1 (at most 4)" in fits["Stable Diffusion"].verdict
    assert "the curve misses batch 64 by +5" in fits["CosmoFlow"].verdict


def test_the_table_of_the_readme_is_that_of_the_atlas():
    fits = read_atlas().fits
    rows = {cells[0]: cells for line in README.splitlines() if (cells := re.split(r" ?\| ?", line)[1:-1])}
    for name, fit in fits.items():
        _, sizes, b_crit, error, verdict = rows[name]
        assert sizes == f"{fit.points[0].batch_size:,} to {fit.points[-1].batch_size:,}"
        told = [
            math.inf if text == "unbounded" else float(text.replace(",", ""))
            for text in re.split(r" \(| to |\)", b_crit)[:3]
        ]
        # Three digits are told.
        assert told == pytest.approx([fit.b_crit.value, fit.b_crit.low, fit.b_crit.high], rel=6e-3), name
        assert float(error.rstrip("%")) == pytest.approx(100 * fit.misfit.left_out_error, abs=0.51)
        assert verdict == fit.verdict.partition(":")[0]


def test_the_command_leaves_a_table_a_record_a_picture_and_a_page_also_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "220")
    sizes = (8, 16, 32, 64, 128, 256)
    Path("mine.csv").write_text("batch_size,steps\n" + "".join(f"{size},{100 * (1 + 60 / size)}\n" for size in sizes))
    assert main(["study", "atlas", "mine.csv", "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"mine +your own +6: 8 to 256 samples +1 +60.0 \(95 %: 60.0 to 60.0\)|mine +your own .* 60 \(", said
    )
    assert "of 9 systems" not in said
    record = json.loads(Path("out/atlas.json").read_text())
    assert [fit["optimizer"] for fit in record["numbers"]["fits"]] == [*B_CRIT, "mine"]
    assert "MLCommons" in record["tables"][0]["title"]
    page = Path("out/page.html").read_text()
    assert "45,529" in page or "45,528" in page
    assert "No study is among the folders" not in page
    assert Path("out/atlas.png").stat().st_size > 20_000


def test_wrong_input_ends_with_two(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["study", "atlas", str(tmp_path / "none.csv")]) == 2
    assert "largebatch study atlas" in capsys.readouterr().err


def test_the_figures_name_each_system_in_one_order_so_that_it_has_one_colour():
    result = atlas_result(read_atlas())
    told = [[line.label for line in figure.lines if line.style != "dashed"] for figure in result.figures]
    assert told[0] == told[1] == told[2]
    assert set(told[0]) == SUPPORTED | EXTRAPOLATED


def test_tables_of_one_name_are_refused(tmp_path: Path):
    paths = [tmp_path / folder / "steps.csv" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("batch_size,steps\n8,100\n")
    with pytest.raises(TableError, match=r"b/steps\.csv: another system of the atlas has the name steps, too. Rename"):
        read_atlas(paths)
