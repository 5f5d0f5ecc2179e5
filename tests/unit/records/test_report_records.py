"""Results in the page: numbers, sentences, figures, links, those of earlier versions too; broken ones are named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from largebatch.records.figures.diagram import Axis, Diagram, Line, Surface, Trail
from largebatch.records.report.layout import place
from largebatch.records.report.page import write_report
from largebatch.records.report.publish import write_result_page
from largebatch.records.report.reading import read_evidence
from largebatch.records.report.result_sections import result_sections
from largebatch.records.report.sections import Section
from largebatch.records.report.verdict import others
from largebatch.records.result import FILES, Result, Table, read_result
from tests.unit.records.report_folders import write_json, write_run

CURVE = Diagram(
    "steps_to_target", "Steps to the target", Axis("batch size"), Axis("steps"), (Line("LARS", [16], [9.0]),)
)
LANDSCAPE = Surface(
    "plane", "Paths", Axis("x"), Axis("y"), Axis("loss"), [0, 1], [0, 1], [[1.0, 2.0], [3.0, 4.0]],
    (Trail("SGD", [0, 0.5, 1], [0, 0.5, 1]),), True,
)  # fmt: skip
RESULT = Result(
    title="Ravines", question="Why <b>?", sentences=["Because it is <i>steep</i>.", "It was known."],
    tables=[Table("ends", ("descent", "loss"), [("batch", "0.5")])], figures=[CURVE, LANDSCAPE],
    numbers={"fits": [], "points": [], "loss": float("nan")}, runs=["runs/x"],
)  # fmt: skip
# What the version before `Result` wrote, kind by kind, with one number that its page shows.
EARLIER: dict[str, dict[str, Any]] = {
    "study.json": {
        "points": [{"runs": ["runs/x"], "batch_size": 4}], "unit": "samples", "conclusions": ["LARS is ahead."],
        "target": {"value": 0.5}, "figures": [CURVE.record()],
    },
    "find_lr.json": {"batch_size": 256, "lr": [0.1], "suggestion": {"lr": 0.5}, "figures": [CURVE.record()]},
    "textbook.json": {"title": "Systems", "answer": "Five.", "tables": [], "numbers": {"b": 0.5}},
    "chapter.json": {
        "title": "Ravines", "question": "Why <b>?", "answer": "Because of 0.5. It was known.", "runs": ["runs/x"],
        "figures": [LANDSCAPE.record()], "numbers": {"a": 1},
        "tables": [{"title": "ends", "headers": ["descent", "loss"], "rows": [["batch", 0.5]]}],
    },
    "atlas.json": {"title": "Systems", "answer": "Five.", "tables": [], "numbers": {"b": 0.5}},
    "variance.json": {"noise": {"trace": 0.5}, "with_replacement": {"points": [{"batch_size": 4}]}},
    "gap.json": {"train_loss": 0.5, "parts": [{"name": "train mode", "loss": None}]},
    "communication.json": {"medians": {"exposed": {"value": 0.5}}, "fit": {"latency_s": 0.001}},
    "sharpness.json": {"lambda_max": {"value": 0.5, "converged": True}, "slices": {"line": [1.0]}},
    "large_batch_gap.json": {"base_batch_size": 0.5, "large_batch_gap": [{"loss": {"value": 0.1}}]},
    "verify.json": {"same": True, "cases": [], "causes": [], "bounds": {"weights": 0.5}},
}  # fmt: skip


def record_of(name: str) -> dict[str, Any]:
    """As `write_result` writes it."""
    return json.loads(json.dumps({"kind": FILES[name][0]} | RESULT.record() | {"config": {"seed": 1}}, allow_nan=False))


RECORDS: dict[str, dict[str, Any]] = {name: record_of(name) for name in FILES}


def section_of(folder: Path, name: str, values: dict[str, Any]) -> Section:
    write_json(folder / "it" / name, values)
    sections, left_out = result_sections(read_evidence([folder]), folder / "page.html")
    assert not left_out
    (section,) = sections
    return section


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_result_is_shown_alike(name: str, tmp_path: Path):
    section = section_of(tmp_path, name, RECORDS[name])
    (option,) = section.options
    assert (section.title, section.key, option.label) == ("Ravines", FILES[name][0].replace("_", "-"), "it")
    assert place(section) < place(Section("damaged", ""))  # or the page would leave the whole record out
    assert [figure.record() for figure in option.figures] == [CURVE.record(), LANDSCAPE.record()]
    for text in ("Why &lt;b&gt;?", "Because it is &lt;i&gt;steep&lt;/i&gt;.", "<li>It was known.</li>",
                 "<caption>ends</caption>", "<td>0.5</td>", 'href="it/runs/x"', f'href="it/{name}"'):  # fmt: skip
        assert text in option.before + option.after


@pytest.mark.parametrize("name", EARLIER)  # kinds of later versions have had one form
def test_a_record_of_an_earlier_version_has_its_sentences_figures_and_single_numbers(name: str, tmp_path: Path):
    values = EARLIER[name]
    (option,) = section_of(tmp_path, name, values).options
    shown = option.before + option.after
    assert "0.5" in shown
    assert [figure.record() for figure in option.figures] == values.get("figures", [])
    for text in [*values.get("conclusions", ()), *([values["answer"].split(". ")[0]] if "answer" in values else [])]:
        assert text in option.before
    assert ("earlier version" in shown) is not values.get("tables")
    assert ('href="it/runs/x"' in shown) is (name in ("study.json", "chapter.json"))


def test_a_result_comes_back_from_its_file():
    found = read_result("textbook.json", RECORDS["textbook.json"])
    assert (found.title, found.question, list(found.sentences)) == (RESULT.title, RESULT.question, RESULT.sentences)
    assert (found.runs, found.numbers["loss"]) == (["runs/x"], None)
    assert [list(row) for row in found.tables[0].rows] == [["batch", "0.5"]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "sharpness"}, "its kind is sharpness, not study"),
        ({"title": None}, "title is no text"),
        ({"sentences": "So."}, "sentences is no list"),
        ({"sentences": ["x" * 5000]}, "sentences is no text of at most 4,000 letters"),
        ({"sentences": ["x"] * 201}, "sentences is no list of at most 200"),
        ({"tables": [1]}, "tables is no list of objects"),
        ({"tables": [{"title": "t", "headers": ["a"], "rows": [["1", "2"]]}]}, "rows of [2] cells under 1 headers"),
        ({"tables": [{"title": "t", "headers": ["a"], "rows": [["1"]] * 5001}]}, "rows is no list of at most 5,000"),
        ({"figures": [{"type": "pie"}]}, "its type is 'pie'"),
        ({"runs": ["a\0b"]}, "runs is no list of folders"),
        ({"numbers": []}, "numbers is no object"),
    ],
)
def test_a_damaged_result_is_refused_with_the_reason(change: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_result("study.json", RECORDS["study.json"] | change)


def test_a_row_of_another_width_is_refused_before_it_is_written():
    with pytest.raises(ValueError, match=r"rows of \[1\] cells under 2 headers"):
        Table("ends", ("descent", "loss"), [("batch",)])


@pytest.mark.parametrize("name", FILES)
def test_a_broken_record_is_named_and_the_others_are_shown(name: str, tmp_path: Path):
    figure = CURVE.record()
    figure["lines"][0]["y"] = ["nine"]  # as long as x: only drawing finds it
    write_json(tmp_path / "broken" / name, RECORDS[name] | {"figures": [figure]})
    write_json(tmp_path / "whole" / name, RECORDS[name])
    write_run(tmp_path / "run", 32)
    evidence = read_evidence([tmp_path])
    sections, left_out = result_sections(evidence, tmp_path / "page.html")
    named = [*evidence.left_out, *left_out]
    assert [one.path.parent.name for one in named] == ["broken"]
    assert len(sections) == 1
    if name == "study.json":  # of one kind: it does not reach the verdict or the explorer either
        path = tmp_path / "page.html"
        write_report(evidence, path, title="it")
        assert f"broken/{name}</td>" in path.read_text()


def test_results_of_one_title_are_options_of_one_section(tmp_path: Path):
    for folder, title in (("a", "Ravines"), ("b", "Ravines"), ("c", "Hills")):
        write_json(tmp_path / folder / "textbook.json", RECORDS["textbook.json"] | {"title": title})
    evidence = read_evidence([tmp_path])
    assert [one.split(":")[0] for one in others(evidence, [])] == ["Ravines", "Ravines", "Hills"]  # each once
    sections, _ = result_sections(evidence, tmp_path / "page.html")
    found = [(one.key, one.title, [option.label for option in one.options]) for one in sections]
    assert found == [("textbook", "Ravines", ["a", "b"]), ("textbook-1", "Hills", ["c"])]


def test_the_page_of_a_verb_has_its_results_and_what_was_left_out_and_asks_no_network(tmp_path: Path):
    files = [write_json(tmp_path / name, RECORDS[name]) for name in ("variance.json", "gap.json")]
    write_result_page(tmp_path, files, title="<measured>", left_out=[("communication", "one process sends nothing")])
    head = (tmp_path / "page.html").read_text().partition('id="plotly"')[0]
    for text in ("&lt;measured&gt;", 'id="variance"', 'id="gap"', "<td>communication</td>",
                 "<td>one process sends nothing</td>", "Ravines: Because"):  # fmt: skip
        assert text in head
    assert "connect-src" in head or "default-src 'none'" in head


def test_runs_of_an_experiment_tell_nothing_of_batch_sizes(tmp_path: Path):
    write_json(tmp_path / "c" / "textbook.json", RECORDS["textbook.json"])
    write_run(tmp_path / "c" / "runs" / "x", 32)
    write_run(tmp_path / "y", 64)
    evidence = read_evidence([tmp_path])
    assert [run.name for run in evidence.runs] == ["x", "y"]
    assert [run.name for run in evidence.compared] == ["y"]
