"""The chapter's page: what experiments measured stands beside the theory, and without records the page is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from largebatch.__main__ import main
from largebatch.cli.textbook import EXPERIMENTS
from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.experiments.textbook.lesson import exercises, questions, tables
from largebatch.experiments.textbook.lesson.measured import TITLES, Answers
from largebatch.experiments.textbook.lesson.tasks import epochs_task
from largebatch.records.report.evidence import Evidence
from largebatch.records.result import Result
from tests.unit.records.report_folders import write_json

FOLDER = Path(main.__code__.co_filename).parent / "experiments" / "textbook"


def headings(page: Path) -> list[str]:
    return re.findall(r"<section[^>]*><h2>(.*?)</h2>", page.read_text(encoding="utf-8"))


def test_the_title_of_an_experiment_is_the_one_that_its_result_has():
    assert TITLES.keys() == EXPERIMENTS.keys()
    for name, title in TITLES.items():
        assert f'title="{title}"' in (FOLDER / f"{name}.py").read_text(encoding="utf-8")


def test_every_claim_check_and_exercise_names_an_experiment():
    named = {one.experiment for one in (*questions.CHECKS, *exercises.EXERCISES)}
    assert named <= EXPERIMENTS.keys()
    claimed = re.findall(r"largebatch textbook (\w+)", tables.claims(Answers(Evidence((), {}))))
    assert claimed == list(EXPERIMENTS)
    assert all(0 <= one.right < len(one.answers) for one in questions.CHECKS)


def test_the_page_without_runs_is_small_and_has_neither_figures_nor_a_verdict(tmp_path: Path):
    page = tmp_path / "new" / "page.html"
    assert main(["textbook", "page", "--out", str(page)]) == 0
    assert page.stat().st_size < 200_000
    assert headings(page)[:4] == ["Three ways down", "Convergence", "Learning rate", "Batch size"]
    assert not {"Verdict", "Results", "Runs (0)"} & {*headings(page)}


def test_a_result_stands_behind_the_widget_of_its_question_and_answers_the_claim(tmp_path: Path):
    said = "It is stable up to <2> & no further."
    result = Result(title=TITLES["learning_rate"], question="?", sentences=[said, "More."], tables=(), figures=())
    write_json(tmp_path / "rates" / "textbook.json", {"kind": "textbook"} | result.record())
    page = tmp_path / "page.html"
    assert main(["textbook", "page", str(tmp_path), "--out", str(page)]) == 0
    shown = headings(page)
    assert shown.index(TITLES["learning_rate"]) == shown.index("Learning rate") + 1
    # The section itself, the claim, two checks or exercises.
    assert page.read_text(encoding="utf-8").count("It is stable up to &lt;2&gt; &amp; no further.") >= 4
    assert said not in page.read_text(encoding="utf-8")


def test_a_folder_that_does_not_exist_and_a_place_that_cannot_be_written_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["textbook", "page", "nowhere", "--out", str(tmp_path / "page.html")]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err
    assert main(["textbook", "page", "--out", str(tmp_path)]) == 1
    assert "Choose another place with --out FILE" in capsys.readouterr().err
    assert main(["textbook", "pages"]) == 2
    assert "page" in capsys.readouterr().err


def test_the_convergence_task_is_the_expansion_of_the_regression_around_its_minimum():
    task = epochs_task()
    model = NoisyQuadratic(task["curvature"], task["noise_variance"])
    assert len(task["curvature"]) == 11
    # Noise 0.1 in the targets: tr(Sigma) = 0.01 tr(H) up to the luck of 1,000 samples.
    assert sum(task["noise_variance"]) == pytest.approx(0.01 * sum(task["curvature"]), rel=0.2)
    assert model.loss(task["start"]) > 1
    assert all(1000 % size == 0 for size in task["divisors"])
