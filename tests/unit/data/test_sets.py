"""What is told and marked where a data set augments by itself, holds text, or leaves files out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import open_dict

from largebatch.__main__ import main
from largebatch.data.subset import innermost
from largebatch.records.figures.run_figures import run_figures
from largebatch.records.report.caveats import caveats
from largebatch.records.report.groups import grouped
from largebatch.records.report.reading import read_evidence
from largebatch.records.rows.augmented_gap import AUGMENTED_GAP, gap_remark
from largebatch.records.rows.columns import columns_of
from largebatch.run.prepare import prepare
from largebatch.run.train_quietly import train_quietly
from tests.unit.data.own_sets import Jittered, jittered
from tests.unit.records.report_folders import write_run

RUN = ("batch.total=16", "length=6steps", "schedule.warmup=0steps", "observers.evaluation.every=3steps")


def notes(**options: Any) -> list[str]:
    return list(prepare(jittered(*RUN, **options), {}).notes)


def test_a_set_that_augments_by_itself_is_told_with_the_remedy_unless_a_plain_one_is_named() -> None:
    (told,) = notes(augment=0.5)
    assert told.startswith(
        "data.train: 8 of 8 samples that were read several times are not the same each time (e.g. 0)"
    )
    assert "data.train_plain={_target_: ..., ...}" in told
    assert notes(augment=0.5, plain=True) == []
    assert notes(augment=0.0) == []
    (told,) = notes(augment=0.0, validation=0.5)
    assert told.startswith("data.validation: 8 of 8 samples")
    assert [one.partition(":")[0] for one in notes(augment=0.5, validation=0.5)] == ["data.train", "data.validation"]


@pytest.mark.parametrize(("augment", "plain", "marked"), [(0.5, False, True), (0.5, True, False), (0.0, False, False)])
def test_the_gap_of_such_a_set_is_marked_in_rows_summary_plan_and_figures(
    tmp_path: Path, augment: float, plain: bool, marked: bool
) -> None:
    run = train_quietly(jittered(*RUN, augment=augment, plain=plain), tmp_path / "run")
    evaluated = [row for row in run.rows if "gap/loss" in row]
    assert [row.get(AUGMENTED_GAP) for row in evaluated] == [1 if marked else None] * 2
    assert json.loads((tmp_path / "run/summary.json").read_text()).get(AUGMENTED_GAP) == (1 if marked else None)
    assert len(json.loads((tmp_path / "run/plan.json").read_text())["notes"]) == marked
    figures = run_figures(columns_of(run.rows))["training"]
    (gap,) = [figure for figure in figures if figure.name == "generalization_gap"]
    assert gap.title.endswith(", one side augmented") == marked
    assert gap_remark(run.summary.get(AUGMENTED_GAP)) == (", one side augmented" if marked else "")


def test_text_among_the_inputs_is_told_and_left_out() -> None:
    config = jittered(*RUN, augment=0.0)
    with open_dict(config):
        config.data.train.text = config.data.validation.text = True
    prepared = prepare(config, {})
    told = "name hold text, which no model takes: dropped."
    assert list(prepared.notes) == [f"data.train: {told}", f"data.validation: {told}"]


def test_a_report_says_of_which_runs_the_gap_is_augmented(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 32)
    write_run(tmp_path / "b", 64, extra={AUGMENTED_GAP: 1})
    evidence = read_evidence([tmp_path])
    (told,) = [line for line in caveats(evidence, grouped(evidence.runs)) if "augment" in line]
    assert told == "Data sets that augment by themselves (1): b. One side of the gap is augmented."


def test_the_set_of_the_user_is_found_behind_all_that_is_put_around_it() -> None:
    config = jittered(*RUN, "data.limit=40", "data.label_noise=0.5", "data.on_bad_sample=skip", augment=0.0)
    assert isinstance(innermost(prepare(config, {}).train), Jittered)


MINE = """
name: mine
num_classes: 4
num_features: 8
train: {_target_: tests.unit.data.own_sets.Jittered, split: train, augment: 2.0}
validation: {_target_: tests.unit.data.own_sets.Jittered, split: validation}
"""


def measured_gap(folder: Path, *overrides: str) -> dict[str, Any]:
    (folder / "conf/data").mkdir(parents=True, exist_ok=True)
    (folder / "conf/data/mine.yaml").write_text(MINE)
    shared = ["--config-dir", str(folder / "conf"), "data=mine", "model=linear", "batch.total=16", "measure.samples=48"]
    assert main(["measure", "gap", *shared, "measure.gap.resamples=200", f"run.dir={folder}/out", *overrides]) == 0
    found: dict[str, Any] = json.loads((folder / "out/gap.json").read_text())["numbers"]
    return found


def test_measure_gap_tells_what_it_cannot_tell_apart_and_blames_no_mode_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    found, said = measured_gap(tmp_path), capsys.readouterr().out
    # A linear model has neither dropout nor batch norm.
    assert {part["name"]: part["loss"] for part in found["parts"]}["train mode"] is None
    assert found["is_augmented"]
    assert "data.train_plain={_target_" in said
    assert "augmentation inside a set is not separated: name data.train_plain" in said
    assert ", one side augmented by its set." in said
    assert "both sides evaluated alike" not in said
    plain = "data.train_plain={_target_: tests.unit.data.own_sets.Jittered, split: train}"
    found, said = measured_gap(tmp_path, plain), capsys.readouterr().out
    parts = {part["name"]: part["loss"] for part in found["parts"]}
    assert parts["train mode"] is None
    assert abs(parts["augmentation"]["value"]) > 0
    assert not found["is_augmented"]
    assert "not separated" not in said
