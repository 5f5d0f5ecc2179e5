"""Advice on the batch: which evidence wins, what a branch of the chart takes, what is said where nothing is known."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from largebatch.__main__ import main
from largebatch.cli.composition.composing import compose_config
from largebatch.cli.plan_advice import read_measured
from largebatch.diagnostics.intervals import Interval
from largebatch.diagnostics.predictions.cost import CostConfig
from largebatch.experiments.advice.answer import Advice, advise
from largebatch.experiments.advice.begun import require_same_advice
from largebatch.experiments.advice.costs import ratios
from largebatch.experiments.advice.decision import NO, OPEN, UNMEASURED, YES
from largebatch.experiments.advice.planned import Planned, PlannedMemory
from largebatch.experiments.advice.questions import COMMUNICATION, GAP, MEMORY, NOISE, QUESTIONS, RATE, REACHED
from largebatch.experiments.advice.sentences import recommended
from largebatch.experiments.advice.short_runs import ShortRun, Spans, config_of, expected_seconds
from largebatch.experiments.textbook.lesson.choice import flow_chart
from largebatch.records.durable_files import NotWrittenError
from largebatch.records.flat_config import flat
from largebatch.records.report.evidence import Evidence
from largebatch.records.report.explorer import quantity_figure
from largebatch.records.report.reading import read_evidence
from largebatch.records.result import Result
from largebatch.run.config.reading import ConfigError
from tests.unit.records.report_folders import NUM_SAMPLES, write_json, write_run

SETTINGS = {
    "data.name": "digits",
    "model._target_": "largebatch.models.ConvNet",
    "model.width": "16",
    "optimizer._target_": "largebatch.optim.LARS",
}
PLANNED = Planned(SETTINGS, 64, NUM_SAMPLES, 1, 16, 0.1, ["batch.total=64"])


def noise(value: float, low: float, high: float, *, kind: str = "") -> dict[str, float]:
    return {f"noise_scale/{kind}{end}": one for end, one in (("b_simple", value), ("ci_low", low), ("ci_high", high))}


def record(kind: str, numbers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": kind} | Result(kind, ["Said."], (), (), numbers).record() | more


def study(value: float, low: float | None, high: float | None, *, supported: bool = True) -> dict[str, Any]:
    curve = {"batch_size": [16, 256], "steps": [400.0, 50.0], "low": None, "high": None}
    b_crit = {"value": value, "low": low, "high": high}
    fit = {"optimizer": "lars", "s_min": {"value": 30.0}, "b_crit": b_crit, "curve": curve, "supported": supported}
    return record("study", {"points": [], "fits": [fit]})


def advised(folder: Path, planned: Planned = PLANNED, sizes: list[int] | None = None) -> Advice:
    return advise(read_evidence([folder]), planned, sizes)


def taken(advice: Advice) -> dict[str, str]:
    return {one.question.key: one.finding.taken for one in advice.chart}


NOISE_OF_RUN = noise(96, 64, 128)
OF_OPTIMIZER = noise(40, 30, 50, kind="optimizer/")


@pytest.mark.parametrize(
    ("extra", "branched", "studied", "said"),
    [
        (NOISE_OF_RUN, None, None, ("96 samples, 64 to 128 (95 %), to an order of magnitude", "by the noise scale at")),
        (NOISE_OF_RUN | OF_OPTIMIZER, None, None, ("40 samples, 30 to 50 (95 %), to an order", "optimizer's geometry")),
        (
            NOISE_OF_RUN | OF_OPTIMIZER,
            (200, 150, None),
            None,
            ("200 samples, 150 or more (95 %): ", "after 9,000 sampl"),
        ),
        (NOISE_OF_RUN, (200, 150, 300), study(70, 50, 90), ("70 samples, 50 to 90 (95 %): ", "the fit of a study")),
        (NOISE_OF_RUN, (200, None, 300), study(70, 5, 900, supported=False), ("200 samples, 300 or less (95 %): ",)),
        (NOISE_OF_RUN | OF_OPTIMIZER, None, study(70, 5, 900, supported=False), ("70 samples, 5 to 900", "a study")),
        (NOISE_OF_RUN, (None, 500, None), None, ("at least 500 samples (95 %)", "only bounded", "after 9,000 samples")),
        (NOISE_OF_RUN, (None, None, 40), None, ("at most 40 samples (95 %)", "only bounded", "critical-batch")),
    ],
)
def test_the_best_evidence_of_the_critical_batch_wins_and_is_named_with_its_interval(
    extra: dict[str, float],
    branched: tuple[float, float | None, float | None] | None,
    studied: dict[str, Any] | None,
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    import largebatch.records.result as results

    if "critical_batch.json" not in results.FILES:
        monkeypatch.setitem(results.FILES, "critical_batch.json", ("critical_batch", ("b_crit",)))
    write_run(tmp_path / "a", 64, extra=extra)
    if branched is not None:
        for seen, factor in ((9000, 1.0), (100, 0.1)):
            value, low, high = (None if end is None else factor * end for end in branched)
            numbers = {"b_crit": {"value": value, "low": low, "high": high}, "samples_seen": seen}
            write_json(tmp_path / f"measured{seen}" / "critical_batch.json", record("critical_batch", numbers))
    if studied is not None:
        write_json(tmp_path / "study" / "study.json", studied)
    first, _, third = advised(tmp_path).sentences
    assert first.startswith("The batch should be a")
    assert [part for part in said if part not in first] == []
    if branched or studied:
        assert ("is bounded on one side" if branched and branched[0] is None else "is measured") in third
        assert "says" in third  # the second best
    else:
        assert "not a measurement of it" in third


def test_without_evidence_nothing_is_invented_and_every_question_has_its_command():
    advice = advise(Evidence(()), replace(PLANNED, overrides=["batch.total=64", "data.path=my file"], world_size=2))
    assert [
        part in one for part, one in zip(("is not known", "is not known", "How sure"), advice.sentences, strict=True)
    ]
    assert recommended(advice.found) is None
    assert "no prediction of this task was graded yet" in advice.sentences[2]
    assert set(taken(advice).values()) == {UNMEASURED}
    commands = [one.command for one in advice.chart]
    assert all("'data.path=my file'" in one for one in commands)
    on_ranks = "torchrun --standalone --nproc-per-node 2 -m largebatch"
    assert commands[-1] == (
        f"for batch in 16 64; do for seed in 0 1 2; do {on_ranks} train 'data.path=my file' batch.total=$batch "
        "seed=$seed; done; done"  # a launcher refuses a sweep
    )
    assert commands[0].endswith("plan.memory=80GiB launcher.num_processes=2")
    assert f"`{on_ranks} advise batch.total=64 'data.path=my file'`" in advice.sentences[2]
    assert advice.record()["candidates"][0]["quantities"]["steps"]["kind"] == "no evidence"
    assert not any(character.isdigit() for character in advice.sentences[1])
    assert advice.result().figures == []


def test_a_printed_command_names_each_key_once():
    typed = ["batch.total=32", "seed=4", "observers.noise_scale.every=5", "++model.width=16", "batch.total=64"]
    advice = advise(Evidence(()), replace(PLANNED, overrides=[*typed, "model.width=16"]))
    for one in advice.chart:
        keys = [part.partition("=")[0].lstrip("+") for part in one.command.split() if "=" in part]
        assert len(set(keys)) == len(keys), one.command
    by_key = {one.question.key: one.command for one in advice.chart}
    assert by_key[RATE] == "largebatch find-lr seed=4 observers.noise_scale.every=5 batch.total=64 model.width=16"
    assert by_key[NOISE].endswith("model.width=16 observers.noise_scale.every=10")
    assert by_key[GAP].endswith("model.width=16 batch.total=16,64 seed=0,1,2")


def branches_from(folder: Path, seen: int, value: float, progress: tuple[float, float]) -> None:
    numbers = {
        "b_crit": {"value": value, "low": value / 2, "high": value * 2}, "samples_seen": seen,
        "progress": {"value": sum(progress) / 2, "low": progress[0], "high": progress[1]},
    }  # fmt: skip
    write_json(folder / f"at{seen}" / "critical_batch.json", record("critical_batch", numbers))


def test_branches_that_made_no_progress_measure_no_critical_batch(tmp_path: Path):
    """Where the loss does not fall, twice the samples to the same loss is a ratio of noise."""
    write_run(tmp_path / "a", 64, extra=NOISE_OF_RUN)
    write_run(tmp_path / "b", 32)
    branches_from(tmp_path, 9000, 700, (-0.01, 0.02))
    first, _, third = advised(tmp_path).sentences
    assert first.startswith("The batch should be about 96 samples")
    assert "found no value, as the loss hardly falls within its branches; a study is next" in third
    branches_from(tmp_path, 4000, 200, (0.01, 0.02))
    assert "about 200 samples, 100 to 400" in advised(tmp_path).sentences[0]


def test_times_without_an_interval_limit_no_batch(tmp_path: Path):
    """Two runs tell no spread: which candidate is the fastest is not known, however their steps compare."""
    for batch in (16, 64):
        write_run(tmp_path / f"b{batch}", batch, step_s=0.01 * batch, extra=NOISE_OF_RUN)
    advice = advised(tmp_path)
    choice = recommended(advice.found)
    assert choice is not None
    assert (choice.fastest, choice.batch) == (None, 128)
    assert "soonest" not in advice.sentences[0]


def test_one_batch_size_tells_no_time_of_another_and_a_budget_that_ended_goes_on(tmp_path: Path):
    write_run(tmp_path / "b64", 64, extra=NOISE_OF_RUN)
    _, second, third = advised(tmp_path, replace(PLANNED, folder="my advice")).sentences
    assert "in an unknown time" in second
    assert "`largebatch advise batch.total=64 run.dir='my advice'` makes it" in third


def test_measured_steps_are_told_with_their_intervals_where_nothing_else_is_known(tmp_path: Path):
    for batch in (16, 64):
        for seed in range(3):
            write_run(tmp_path / f"b{batch}_{seed}", batch, seed=seed, step_s=0.001 * batch * (1 + 0.01 * seed))
    second = advised(tmp_path).sentences[1]
    assert "a step takes 16.2 ms (" in second
    assert " ms) at batch 16, and 64." in second
    assert second.endswith(" ms) at batch 64.")


def test_what_other_ranks_and_other_settings_measured_is_said(tmp_path: Path):
    write_run(tmp_path / "a", 64, extra=NOISE_OF_RUN)
    other = write_run(tmp_path / "b", 32) / "config.yaml"
    other.write_text(other.read_text().replace("momentum: 0.9", "momentum: 0.5"))
    advice = advised(tmp_path, replace(PLANNED, world_size=4))
    assert taken(advice)[COMMUNICATION] == UNMEASURED  # one process sends nothing, four do
    assert advice.found.at("exposed_communication", 64).value is None
    assert "times are of 1 process, and the plan has 4" in advice.sentences[2]
    assert "the runs differ besides the batch, in optimizer.momentum" in advice.sentences[2]
    share = {"value": 0.02, "low": 0.01, "high": 0.03}
    numbers = {"medians": {"share": share}, "fit": {}, "ranks": 2}
    write_json(tmp_path / "communication.json", record("communication", numbers))
    assert taken(advised(tmp_path, replace(PLANNED, world_size=4)))[COMMUNICATION] == OPEN


def test_memory_of_smaller_micro_batches_does_not_say_that_a_larger_one_fits(tmp_path: Path):
    for batch in (8, 16):
        write_run(tmp_path / f"b{batch}", batch, extra={"memory/peak_bytes": (1 + batch / 16) * 2.0**30})
    assert taken(advised(tmp_path))[MEMORY] == YES
    larger = advised(tmp_path, replace(PLANNED, max_micro=64))
    assert taken(larger)[MEMORY] == OPEN
    assert "no run had more than 16 of the 64 samples at once" in larger.chart[0].finding.measured
    assert larger.chart[0].command.startswith("largebatch plan ")


@pytest.mark.parametrize(("batch", "answer"), [(32, NO), (64, NO), (96, OPEN), (128, YES), (256, YES)])
def test_a_batch_below_the_interval_of_the_noise_scale_has_not_reached_it(batch: int, answer: str, tmp_path: Path):
    write_run(tmp_path / "a", 64, extra=NOISE_OF_RUN)
    advice = advised(tmp_path, replace(PLANNED, batch=batch))
    assert taken(advice)[NOISE] == YES
    assert taken(advice)[REACHED] == answer
    reached = next(one for one in advice.chart if one.question.key == REACHED)
    assert f"{batch:,} is {batch / 96:.3g} times the gradient noise scale" in reached.finding.measured
    assert ("Double the batch" in reached.then) == (answer == NO)


@pytest.mark.parametrize(("known_at", "is_evidence"), [(0.95, True), (0.5, False)])
def test_a_noise_scale_that_lost_its_interval_before_the_end_is_no_evidence(
    known_at: float, is_evidence: bool, tmp_path: Path
):
    """It grows as the loss falls: that of the first half is of other weights."""
    run = write_run(tmp_path / "a", 64)
    total = 1000
    rows = [
        {"step": step, "samples_seen": 64 * step, "noise_scale/trace": 1.0}
        | (NOISE_OF_RUN | OF_OPTIMIZER if step <= known_at * total else {})
        for step in range(50, total + 1, 50)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    critical = advised(tmp_path).found.critical
    assert [one.amount.value for one in critical] == ([40, 96] if is_evidence else [])


def test_an_interval_over_a_factor_of_100_reads_not_known_in_table_sentence_and_figure(tmp_path: Path):
    """One seed per size whose times differ wildly: Student's interval of a spread of e^2 spans decades."""
    for batch, step_s in ((16, 0.2), (32, 0.002), (64, 0.2), (128, 0.002)):
        write_run(tmp_path / f"b{batch}", batch, step_s=step_s, extra=NOISE_OF_RUN)
    advice = advised(tmp_path)
    one = advice.found.at("step_time", 64)
    assert one.low is not None
    assert one.high is not None
    assert one.high > 100 * one.low
    cells = next(row for row in advice.table().rows if row[0] == "step time")
    assert all(str(cell).endswith("\nnot known") for cell in cells[1:])
    assert "(interval not known: over 100-fold) the time" in advice.sentences[1]
    quantity = advice.found.quantities["step_time"]
    figure = quantity_figure(quantity, [16, 64], [quantity.at(16), quantity.at(64)], "LARS")
    assert figure.lines[0].low is None


@pytest.mark.parametrize(("doubled", "answer"), [(0.19, YES), (0.11, NO)])
def test_devices_at_full_speed_end_the_doubling(doubled: float, answer: str, tmp_path: Path):
    """A step with twice the batch takes 1.9 times as long, or 1.1 times."""
    write_run(tmp_path / "a", 32, step_s=0.1, extra=noise(900, 800, 1000))
    write_run(tmp_path / "b", 64, step_s=doubled, extra=noise(900, 800, 1000))
    assert taken(advised(tmp_path, replace(PLANNED, batch=32)))[REACHED] == answer


@pytest.mark.parametrize(
    ("medians", "answer"), [((0.02, 0.01, 0.03), YES), ((0.3, 0.2, 0.4), NO), ((0.1, 0.05, 0.2), OPEN)]
)
def test_communication_counts_from_a_tenth_of_a_step(medians: tuple[float, float, float], answer: str, tmp_path: Path):
    share = dict(zip(("value", "low", "high"), medians, strict=True))
    write_json(tmp_path / "communication.json", record("communication", {"medians": {"share": share}, "fit": {}}))
    advice = advised(tmp_path, replace(PLANNED, world_size=2))
    assert taken(advice)[COMMUNICATION] == answer


@pytest.mark.parametrize(
    ("lr", "batch", "optimizer", "answer"),
    [
        (0.1, 64, "LARS", YES),
        (0.039, 64, "LARS", NO),
        (0.31, 64, "LARS", NO),
        (0.1, 128, "LARS", UNMEASURED),
        (0.1, 64, "LAMB", UNMEASURED),
    ],
)
def test_the_rate_is_tuned_if_it_is_within_a_factor_of_2_of_the_suggestion(
    lr: float, batch: int, optimizer: str, answer: str, tmp_path: Path
):
    numbers = {"batch_size": batch, "suggestion": {"lr": 0.1, "low": 0.08, "high": 0.15}}
    config = {
        "data": {"name": "digits"},
        "model": {"_target_": "largebatch.models.ConvNet", "width": 16},
        "optimizer": {"_target_": f"largebatch.optim.{optimizer}"},
    }
    write_json(tmp_path / "find_lr.json", record("find_lr", numbers, config=config))
    assert taken(advised(tmp_path, replace(PLANNED, peak_lr=lr)))[RATE] == answer


def test_a_predicted_memory_fits_or_not_and_a_measured_one_comes_first(tmp_path: Path):
    memory = PlannedMemory("cuda", 16, 2**30, 2.0**20, (2**30, 1.1), fits=16, budget=4 * 2**30)
    fits = advise(Evidence(()), replace(PLANNED, memory=memory))
    assert taken(fits)[MEMORY] == YES
    assert taken(advise(Evidence(()), replace(PLANNED, memory=replace(memory, fits=8))))[MEMORY] == NO
    assert taken(advise(Evidence(()), replace(PLANNED, memory=replace(memory, fits=None, budget=None))))[MEMORY] == OPEN
    one = fits.found.at("memory", 8)  # 8 samples less than predicted
    assert one.value == pytest.approx(1 - 8 / 1024)
    assert one.high == pytest.approx(1.1 * (1 - 8 / 1024) + 1)
    write_run(tmp_path / "a", 64, extra={"memory/peak_bytes": 3.0 * 2**30})
    advice = advised(tmp_path, replace(PLANNED, memory=replace(memory, fits=8)))
    assert taken(advice)[MEMORY] == YES
    assert advice.found.at("memory", 64).value == 3.0


def write_seeds(folder: Path, ends: dict[int, float], *, step_s: dict[int, float] | None = None) -> None:
    for batch, accuracy in ends.items():
        for seed in range(3):
            write_run(
                folder / f"b{batch}_s{seed}", batch, seed=seed, accuracy=accuracy + 0.002 * seed,
                step_s=(step_s or {}).get(batch, 0.1) * (1 + 0.01 * seed), extra=noise(200, 150, 300),
            )  # fmt: skip


def test_a_worse_end_limits_the_batch_and_is_quoted(tmp_path: Path):
    write_seeds(tmp_path, {16: 0.95, 64: 0.95, 256: 0.92})
    advice = advised(tmp_path)
    choice = recommended(advice.found)
    assert choice is not None
    assert (choice.batch, choice.base, choice.limit, choice.fastest) == (128, 16, 256, 256)
    assert "below 256, where validation accuracy at 256 is 3 points worse (95 %: " in advice.sentences[0]
    assert taken(advice)[GAP] == YES
    assert taken(advised(tmp_path, replace(PLANNED, batch=256)))[GAP] == NO


def test_runs_that_were_broken_off_do_not_count_as_ends(tmp_path: Path):
    write_seeds(tmp_path, {16: 0.95, 64: 0.95})
    for seed in range(3):
        run = write_run(tmp_path / f"short{seed}", 256, seed=seed, accuracy=0.1)
        rows = (run / "metrics.jsonl").read_text().splitlines()
        (run / "metrics.jsonl").write_text("\n".join(rows[:4]) + "\n")
    found = advised(tmp_path).found
    assert list(found.worse) == [64]
    assert found.at("eval_val_accuracy", 256).kind == "no evidence"
    assert 256 in found.quantities["step_time"].measured


def test_where_steps_take_twice_as_long_with_twice_the_batch_the_fastest_batch_is_the_limit(tmp_path: Path):
    """Time = (1 + 200 / B) (a + b B) is least at B = sqrt(200 a / b) = 45, between the candidates 32 and 64."""
    write_seeds(
        tmp_path, dict.fromkeys((16, 64, 256), 0.95), step_s={size: 0.01 + 0.001 * size for size in (16, 64, 256)}
    )
    advice = advised(tmp_path)
    choice = recommended(advice.found)
    assert choice is not None
    times = {size: advice.found.at("time_to_target", size).value for size in advice.found.sizes}
    assert choice.fastest == min(times, key=lambda size: times[size] or math.inf)
    assert choice.fastest in (32, 64)
    assert choice.batch == choice.fastest
    assert f"no larger than {choice.fastest}, the candidate that reaches a target soonest" in advice.sentences[0]


def test_costs_against_the_smallest_follow_from_the_law(tmp_path: Path):
    write_seeds(tmp_path, {16: 0.95, 64: 0.95})
    found = advised(tmp_path).found
    assert found.critical[0].amount == Interval(200, 150, 300)
    one = ratios(found, 64, 16)
    assert one.steps is not None
    assert one.samples is not None
    assert one.steps.value == pytest.approx((1 + 200 / 64) / (1 + 200 / 16))
    assert (one.steps.low, one.steps.high) == pytest.approx(
        ((1 + 300 / 64) / (1 + 300 / 16), (1 + 150 / 64) / (1 + 150 / 16))
    )
    assert one.samples.value == pytest.approx(4 * one.steps.value)
    steps, samples = (found.quantities[key].at for key in ("steps", "samples"))
    assert (steps(64).value or 0) / (steps(16).value or 1) == pytest.approx(one.steps.value)
    assert (samples(64).value or 0) / (samples(16).value or 1) == pytest.approx(one.samples.value)


def test_the_price_is_quoted_where_a_device_has_one(tmp_path: Path):
    write_seeds(tmp_path, {16: 0.95, 64: 0.95})
    cost = CostConfig(device_hour=3.6, currency="EUR")  # a thousandth per second
    second = advised(tmp_path, replace(PLANNED, cost=cost)).sentences[1]
    assert "an epoch costs 0.0" in second
    assert " EUR (" in second
    assert "its price is not known" in advised(tmp_path).sentences[1]


def test_runs_of_other_tasks_models_and_optimizers_are_left_out_by_name(tmp_path: Path):
    write_run(tmp_path / "ours", 64, extra=NOISE_OF_RUN)
    write_run(tmp_path / "wide", 64, width=64, extra=noise(1, 1, 1))
    write_run(tmp_path / "lamb", 64, optimizer="LAMB", extra=noise(1, 1, 1))
    write_run(tmp_path / "broken", 64)
    (tmp_path / "broken" / "metrics.jsonl").write_text("")
    evidence = advised(tmp_path).found.evidence
    assert [run.folder.name for run in evidence.runs] == ["ours"]
    reasons = {one.path.name: one.reason for one in evidence.left_out}
    assert reasons["wide"] == "is of another model: model.width=64, here 16"
    assert reasons["lamb"] == "its optimizer is LAMB, not LARS"
    assert "no whole row" in reasons["broken"]


def test_the_tree_fits_80_columns_and_its_commands_are_whole(tmp_path: Path):
    write_seeds(tmp_path, {16: 0.95, 64: 0.95})
    advice = advised(tmp_path, replace(PLANNED, overrides=["batch.total=64", f"data.path={'x' * 90}"]))
    for line in [*advice.tree(), *advice.text()]:
        assert len(line) <= 80 or " largebatch " in line or "`" in line, line
    assert any(line.strip() == f"-> largebatch find-lr batch.total=64 data.path={'x' * 90}" for line in advice.tree())


def test_the_textbook_draws_the_same_questions():
    page = flow_chart()
    assert page.count("<li>") == len(QUESTIONS)
    assert "Does a step with a batch of 32 fit in memory?" in page
    assert "largebatch find-lr batch.total=512" in page
    assert "{" not in page


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for size in (16, 64):
        run = write_run(tmp_path / "runs" / f"b{size}", size, extra=NOISE_OF_RUN)
        text = (
            (run / "config.yaml").read_text().replace("LARS", "SGD").replace("ConvNet, width: 16", "MLP, hidden: [8]")
        )
        (run / "config.yaml").write_text(text)
    return tmp_path


OVERRIDES = ("model=mlp", "model.hidden=[8]", "batch.total=64", "plan.dry_run=false")


def test_plan_advise_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["plan", "--advise", "--measured", "runs", *OVERRIDES, "plan.format=json", "plan.picture=a/advice.png"]
    command = "batch.total=64 model=mlp 'model.hidden=[8]'"
    write_run(folder / "runs" / "broken", 64)
    (folder / "runs" / "broken" / "plan.json").write_text("{")
    assert main(arguments) == 3
    told = capsys.readouterr()
    advice = json.loads(told.out)["advice"]
    assert len(advice["sentences"]) == 3
    assert [one["batch"] for one in advice["candidates"]] == [16, 32, 64, 128, 256]
    assert advice["critical_batch"][0]["value"] == 96
    assert [Path(one).name for one in advice["runs"]] == ["b16", "b64"]
    assert "runs/broken" in told.err
    assert sorted(advice["chart"][4]["command"].removeprefix("largebatch find-lr ").split()) == sorted(command.split())
    assert (folder / "a" / "advice.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--advise", "--measured"], "names no folder"),
        (["--advise=true"], "the flag has no value"),
        (["--measured", "runs"], "only advice reads them. Add plan.advise=true"),
        (["--advise", "plan.batch_sizes=[64,9999]"], "[9999] exceed the training set of 1,437 samples"),
        (["--advise", "plan.batch_sizes=[64,64]"], "a size is listed twice"),
        (["--advise", "plan.picture=a.jpg"], "plan.picture"),
    ],
)
def test_wrong_input_is_refused(arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", *arguments, *OVERRIDES]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert said in told


def test_measured_folders_without_any_run_are_refused(in_a_folder: None):
    with pytest.raises(ConfigError, match="nowhere: does not exist"):
        read_measured(["nowhere"])
    assert not read_measured([])


def test_a_folder_of_other_settings_or_of_something_else_is_refused(tmp_path: Path):
    config = {"seed": 0, "batch": {"total": 64}, "run": {"dir": "a"}, "model": {"width": 16}}
    folder = tmp_path / "advice"
    require_same_advice(folder, config)
    require_same_advice(folder, config | {"run": {"dir": "b"}})
    with pytest.raises(ConfigError, match=r"model.width=17: was 16 when .* was begun. Set it back"):
        require_same_advice(folder, config | {"model": {"width": 17}})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something that is no advice"):
        require_same_advice(tmp_path / "other", config)
    (folder / "advise_settings.json").write_text("{")
    with pytest.raises(ConfigError, match="so what it was begun with is not known"):
        require_same_advice(folder, config)


def test_a_noise_scale_is_of_the_second_half_and_the_middle_is_kept():
    config = OmegaConf.create({"batch": {"total": 64}})
    spans = Spans(6400, 640)
    made = flat(OmegaConf.to_container(config_of(ShortRun(16, 0), config, spans, keeps_middle=True)))
    assert (made["observers.noise_scale.every"], made["observers.noise_scale.window"]) == (1, 200)  # of 400 steps
    assert (made["observers.checkpoint.every"], made["observers.checkpoint.keep"]) == ("200steps", 2)
    short = flat(OmegaConf.to_container(config_of(ShortRun(128, 0), config, spans)))
    assert short["observers.noise_scale.window"] == 40  # of 50 steps: half of them give no interval to rely on
    assert "observers.checkpoint.every" not in short


def test_the_run_of_an_advice_experiment_is_one_for_every_verb(in_a_folder: None, capsys: pytest.CaptureFixture[str]):
    """Advice prints such commands; typed settings of another verb are refused as ever."""
    assert main(["plan", "experiment=advice/digits", "plan.dry_run=false"]) == 0
    for verb in ("study", "find_lr", "attribute", "measure"):  # some compose it anew for each of their runs
        assert "advise" not in compose_config(["experiment=advice/digits"], config_name=verb)
    assert "advise" in compose_config(["experiment=advice/digits"], config_name="advise")
    capsys.readouterr()
    assert main(["plan", "experiment=advice/digits", "+advise.minutes=1", "plan.dry_run=false"]) == 2
    assert "advise" in capsys.readouterr().err


def test_a_run_is_expected_to_take_what_its_steps_do_by_the_runs_before(tmp_path: Path):
    one = ShortRun(64, 0)
    assert expected_seconds(one, tmp_path, total=8192, overheads=[]) is None
    for size, step_s in ((16, 0.02), (256, 0.26)):  # 4 ms and 1 ms per sample
        for seed in range(3):
            write_run(tmp_path / "runs" / f"b{size}_s{seed}", size, seed=seed, step_s=step_s * (1 + 0.001 * seed))
    expected = expected_seconds(one, tmp_path, total=8192, overheads=[1.0, 3.0])
    assert expected == pytest.approx(8192 // 64 * 0.068 + 3, rel=0.1)


def fails_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


LITTLE = ["data=digits", "model=mlp", "model.hidden=[4]", "batch.total=96", "length=2ep", "schedule.warmup=0ep"]


def test_one_command_measures_and_answers_and_goes_on(
    in_a_folder: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    arguments = ["advise", *LITTLE, "advise.batch_sizes=[48,96]", "advise.find_lr=false", "run.dir=a"]
    code = main(arguments)
    first = capsys.readouterr().out
    assert "batch 96, seed 0: finished, 29 steps" in first
    assert "batch 48, seed 0: finished, 58 steps" in first
    assert {one.name for one in Path("a").iterdir()} == {
        "advice.json", "advice.png", "advise_settings.json", "page.html", "runs",
    }  # fmt: skip
    assert {one.name for one in Path().iterdir()} == {"a"}
    record = json.loads(Path("a", "advice.json").read_text())
    assert record["sentences"] == record["numbers"]["sentences"]
    assert code == (0 if record["numbers"]["critical_batch"] else 1)
    monkeypatch.setattr(
        "largebatch.experiments.advice.written.write_report", lambda *_, **__: None
    )  # once is enough: it is slow
    monkeypatch.setattr("largebatch.experiments.advice.written.write_result", lambda *_, **__: None)
    with monkeypatch.context() as full:
        full.setattr("largebatch.experiments.advice.written.write_result", fails_with(NotWrittenError("a/advice.json")))
        full.setattr("largebatch.cli.find_lr.run", fails_with(KeyboardInterrupt()))
        assert main(arguments) == 1
        assert "3. How sure: " in capsys.readouterr().out, "a full disk does not take the answer"
        with contextlib.suppress(KeyboardInterrupt):
            main([*arguments, "advise.find_lr=true"])
        assert "the same command with run.dir=a continues" in capsys.readouterr().out
    shutil.rmtree("a/runs/batch48_seed0")  # as if it had been interrupted
    main([*arguments, "advise.minutes=0.0001"])
    second = capsys.readouterr().out
    assert "batch 96, seed 0: was made before" in second
    assert "batch 48, seed 0: left out: no time left" in second
    assert main([*arguments, "model.hidden=[5]"]) == 2
    assert "was [4] when a was begun" in capsys.readouterr().err
