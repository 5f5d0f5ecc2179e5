"""Studies, range tests, measurements and experiments in the page: numbers, figures, links; broken ones are named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from largebatch.records.figures.diagram import Axis, Diagram, Line, Surface, Trail
from largebatch.records.report.page import write_report
from largebatch.records.report.reading import read_evidence
from largebatch.records.report.record_sections import record_sections
from largebatch.records.report.sections import Option
from tests.unit.report_folders import write_json, write_run

CURVE = Diagram(
    "steps_to_target", "Steps to the target", Axis("batch size"), Axis("steps"), (Line("LARS", [16], [9.0]),)
)
LANDSCAPE = Surface(
    "plane", "Paths", Axis("x"), Axis("y"), Axis("loss"), [0, 1], [0, 1], [[1.0, 2.0], [3.0, 4.0]],
    (Trail("SGD", [0, 0.5, 1], [0, 0.5, 1]),), True,
)  # fmt: skip
POINT = {
    "optimizer": "LARS", "batch_size": 1024, "median_steps": None, "low": 8.0, "high": None, "censored": True,
    "setting": {"lr": 0.123456}, "border": ["lr: at the upper border"], "runs": ["runs/a"],
}  # fmt: skip
RECORDS: dict[str, dict[str, Any]] = {
    "study.json": {
        "points": [POINT], "fits": [], "conclusions": ["LARS was not followed to its end."],
        "target": {"metric": "eval/val_loss", "value": 0.5, "direction": "below"}, "figures": [CURVE.record()],
    },
    "find_lr.json": {
        "batch_size": 256, "lr": [0.1],
        "suggestion": {"lr": 0.25, "low": 0.125, "high": 0.5, "reason": "steepest there"},
        "stability_limit": None, "figures": [],
    },
    "textbook.json": {
        "title": "Ravines", "question": "Why <b>?", "answer": "Because.", "runs": ["runs/x"],
        "figures": [LANDSCAPE.record()],
        "tables": [{"title": "ends", "headers": ["descent", "loss"], "rows": [["batch", 0.5]]}],
    },
    "variance.json": {
        "noise": {}, "weights": "step 8", "world_size": 2,
        "with_replacement": {
            "points": [{"batch_size": 4, "variance": 2.0, "interval": [1.0, 3.0], "theory": 2.5}],
            "slope": {"value": -1.01, "interval": [-1.1, -0.9]},
        },
        "without_replacement": {"points": [{"batch_size": 8, "variance": 0.0, "interval": None, "theory": 0.0}]},
    },
    "gap.json": {
        "train_loss": 0.5, "val_loss": 0.75, "parts": [{"name": "train mode", "loss": None},
            {"name": "generalization", "loss": {"value": 0.25, "low": 0.125, "high": 0.375}}],
        "naive": {"loss": {"value": 0.25, "low": 0.1, "high": 0.4}},
        "generalization_gap": {"loss": {"value": 0.25, "low": 0.1, "high": 0.4}},
    },
    "communication.json": {
        "medians": {"exposed": {"value": 0.004, "low": 0.002, "high": 0.006},
            "share": {"value": 0.2, "low": 0.1, "high": 0.3}},
        "fit": {"latency_s": 0.001, "s_per_byte": 1e-6},
        "all_reduces": {"num_bytes": [1000], "median_s": [0.003], "low_s": [0.002], "high_s": [0.004]},
    },
    "sharpness.json": {
        "lambda_max": {"value": 1.5, "residual": 1e-6}, "trace": {"value": 7.0, "standard_error": None},
        "slices": {"line_positions": [0, 1], "line": [1.0, 2.0],
            "plane_positions": [0, 1], "plane": [[1.0, 2.0], [2.0, 3.0]]},
    },
    "large_batch_gap.json": {
        "base_batch_size": 32, "large_batch_gap": [
            {"global_batch_size": 512, "match": "train_loss", "at": 0.5,
             "loss": {"value": 0.1, "low": None, "high": None},
             "accuracy": None},
            {"global_batch_size": 512, "match": "steps", "at": None, "loss": None,
             "accuracy": None, "reason": "too short"}],
    },
}  # fmt: skip


def shown(folder: Path, name: str, values: dict[str, Any]) -> Option:
    """The only option of the only section, or of a textbook experiment its section."""
    write_json(folder / "it" / name, values)
    sections, left_out = record_sections(read_evidence([folder]), folder / "page.html")
    assert not left_out
    (section,) = sections
    return section.options[0] if section.options else Option(section.title, section.figures, section.before)


@pytest.mark.parametrize(
    ("name", "texts"),
    {
        "study.json": [
            "Target: eval/val_loss below 0.5.", "LARS was not followed to its end.", "<td>1,024</td>", "not reached",
            "8 to unbounded", "lr=0.1235", "lr: at the upper border", 'href="it/runs/a"',
        ],
        "find_lr.json": ["<td>256</td>", "0.25 (0.125 to 0.5)", "none", "steepest there", 'href="it/find_lr.json"'],
        "textbook.json": ["Question: Why &lt;b&gt;?", "Answer: Because.", "<caption>ends</caption>", "<td>0.5</td>",
            'href="it/runs/x"'],
        "variance.json": ["slope with replacement -1.010 (95 %: -1.100 to -0.900; the law has -1)", "Of step 8, on 2"],
        "gap.json": ["<td>generalization</td><td>+0.25</td><td>+0.125 to +0.375</td>",
            "<td>train mode</td><td>none</td>"],
        "communication.json": ["<td>exposed</td><td>4 ms</td><td>2 to 6</td>",
            "<td>share</td><td>20 %</td><td>10 to 30</td>"],
        "sharpness.json": ["<td>1.5</td><td>residual 1e-06</td>", "<td>7</td><td></td>"],
        "large_batch_gap.json": ["against batch 32", "<td>+0.1</td><td>no interval</td>", "<td>too short</td>"],
    }.items(),
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_a_record_is_told_with_its_numbers_and_links(name: str, texts: list[str], tmp_path: Path):
    content = shown(tmp_path, name, RECORDS[name]).before
    for text in texts:
        assert text in content


def test_figures_of_records_are_shown_as_they_are(tmp_path: Path):
    assert list(shown(tmp_path / "s", "study.json", RECORDS["study.json"]).figures) == [CURVE]
    (landscape,) = shown(tmp_path / "c", "textbook.json", RECORDS["textbook.json"]).figures
    assert isinstance(landscape, Surface)
    assert list(landscape.trails[0].x) == [0, 0.5, 1]


def test_measured_variances_stand_beside_theory(tmp_path: Path):
    (figure,) = shown(tmp_path, "variance.json", RECORDS["variance.json"]).figures
    assert isinstance(figure, Diagram)
    measured, theory = figure.lines
    assert (measured.y, measured.low, measured.high, theory.y) == ([2.0], [1.0], [3.0], [2.5])


def test_the_fit_of_all_reduces_is_latency_and_bytes(tmp_path: Path):
    (figure,) = shown(tmp_path, "communication.json", RECORDS["communication.json"]).figures
    assert isinstance(figure, Diagram)
    assert figure.lines[1].y == [pytest.approx(0.002)]


def broken(values: dict[str, Any]) -> dict[str, Any]:
    """The same with every list of objects made one of numbers, or a number made a list."""
    values = copy.deepcopy(values)
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return values | {key: [1]}
    return values | {key: [] for key in ("lambda_max", "medians", "with_replacement") if key in values}


@pytest.mark.parametrize("name", [name for name in RECORDS if name != "find_lr.json"])
def test_a_broken_record_is_named_and_the_others_are_shown(name: str, tmp_path: Path):
    write_json(tmp_path / "broken" / name, broken(RECORDS[name]))
    write_json(tmp_path / "whole" / name, RECORDS[name])
    write_run(tmp_path / "run", 32)
    evidence = read_evidence([tmp_path])
    sections, left_out = record_sections(evidence, tmp_path / "page.html")
    named = [*evidence.left_out, *left_out]
    assert [one.path.parent.name for one in named] == ["broken"]
    assert named[0].reason.startswith("is no whole record: ") or "no list of objects" in named[0].reason
    assert len(sections) == 1
    path = tmp_path / "page.html"
    write_report(evidence, path, title="it")  # nor does a broken record reach the verdict or the explorer
    assert f"broken/{name}</td>" in path.read_text()


def test_runs_of_an_experiment_tell_nothing_of_batch_sizes(tmp_path: Path):
    write_json(tmp_path / "c" / "textbook.json", RECORDS["textbook.json"])
    write_run(tmp_path / "c" / "runs" / "x", 32)
    write_run(tmp_path / "y", 64)
    evidence = read_evidence([tmp_path])
    assert [run.name for run in evidence.runs] == ["x", "y"]
    assert [run.name for run in evidence.compared] == ["y"]
