"""`largebatch compare`: run folders in, the large-batch gap out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from largebatch.__main__ import main

pytestmark = pytest.mark.usefixtures("in_a_folder")

CONFIG = """\
seed: {seed}
data: {{validation: {{_target_: {data}}}}}
loss: {{_target_: one}}
optimizer: {{momentum: {momentum}}}
"""


def make(
    name: str, batch: int, losses: list[float], *, seed: int = 0, data: str = "digits", momentum: float = 0.9
) -> str:
    """A run's folder: validation loss is 1 above, accuracy 1 - train loss / 10, an evaluation every 100 samples."""
    folder = Path(name)
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps({"global_batch_size": batch, "ramp": []}))
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed, data=data, momentum=momentum))
    rows = [
        {"step": 100 * number // batch, "samples_seen": 100 * number, "eval/train_loss": loss,
         "eval/val_loss": loss + 1, "eval/val_accuracy": 1 - loss / 10, "gap/loss": 1.0}
        for number, loss in enumerate(losses, start=1)
    ]  # fmt: skip
    rows.insert(0, {"step": 1, "samples_seen": batch, "train/loss": 5.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_runs_are_grouped_by_their_batch_and_compared_with_the_smallest(capsys):
    runs = [
        make("a", 50, [4.0, 2.0], momentum=0.8), make("b", 10, [2.0, 1.0], seed=0), make("c", 10, [2.2, 1.2], seed=1),
        make("d", 50, [4.0, 2.4], seed=1), make("e", 10, [2.1, 1.1], seed=2), make("f", 50, [4.0, 2.2], seed=2),
    ]  # fmt: skip
    assert main(["compare", *runs, "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "large-batch gap on validation, against batch 10 (3 seeds); positive: worse" in said
    assert "Besides the batch, the runs differ in: optimizer.momentum." in said
    for words in ("equal samples seen", "equal optimizer steps", "equal training loss"):
        assert f" 50 (3 seeds)   {words}" in said
    record = json.loads(Path("out/large_batch_gap.json").read_text())["numbers"]
    assert record["runs"] == {"10": ["b", "c", "e"], "50": ["a", "d", "f"]}
    samples, steps, train_loss = record["large_batch_gap"]
    assert samples["loss"]["value"] == pytest.approx(2.2 - 1.1)
    assert samples["accuracy"]["value"] == pytest.approx(0.22 - 0.11)
    assert samples["loss"]["low"] < 1.1 < samples["loss"]["high"]
    assert (steps["at"], steps["loss"]) == (None, None)
    assert "one run ends at 4 steps, another is first evaluated at 10" in steps["reason"]
    assert train_loss["reason"].startswith("one run is below a training loss of 2 at its first evaluation")
    assert Path("out/gap.png").stat().st_size > 10_000


def test_one_run_of_each_has_no_interval_and_the_record_is_plain_json(capsys):
    assert main(["compare", make("a", 10, [2.0, 1.0]), make("b", 20, [3.0, 2.0]), "--out", "out"]) == 0
    assert "1 seed: no interval" in capsys.readouterr().out
    text = Path("out/large_batch_gap.json").read_text()
    assert json.loads(text)["numbers"]["large_batch_gap"][0]["loss"] == {"value": 1.0, "low": None, "high": None}
    assert "NaN" not in text
    assert "Besides the batch" not in capsys.readouterr().out


def test_runs_that_repeat_a_seed_are_one_value_and_told(capsys):
    small = [make(f"s{number}", 10, [2.0, 1.0 + 0.1 * number]) for number in range(3)]
    large = [make(f"l{number}", 50, [4.0, 2.0]) for number in range(3)]
    shorter = make("killed", 10, [2.0])
    assert main(["compare", *small, shorter, *large, "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "against batch 10 (1 seed); positive: worse" in said
    assert "1 seed: no interval" in said
    told = "batch 10: 4 runs of seed 0 merged into one value, without 1 that ended earlier or evaluated elsewhere"
    assert told in said
    record = json.loads(Path("out/large_batch_gap.json").read_text())["numbers"]
    assert record["large_batch_gap"][0]["loss"] == {"value": pytest.approx(2.0 - 1.1), "low": None, "high": None}
    assert record["merged"] == [told, "batch 50: 3 runs of seed 0 merged into one value"]


def test_two_seeds_have_no_interval(capsys):
    runs = [make(f"b{batch}s{seed}", batch, [2.0, 1.0 + seed], seed=seed) for batch in (10, 20) for seed in range(2)]
    assert main(["compare", *runs, "--out", "out"]) == 0
    assert "2 seeds: no interval" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused_with_a_reason(capsys):
    good, other = make("good", 10, [2.0, 1.0]), make("other", 20, [2.0, 1.0])
    Path("empty").mkdir()
    make("ramp", 20, [1.0])
    Path("ramp/plan.json").write_text(json.dumps({"global_batch_size": 20, "ramp": [{"position": 1}]}))
    make("unevaluated", 20, [float("inf")])
    for arguments, words in (
        ([good, "empty"], "empty/plan.json does not exist. Give the folder of a run"),
        ([good, other, "good/"], "a folder is given twice"),
        ([good, make("same", 10, [1.0])], "all runs have batch 10: a gap needs two batch sizes"),
        ([good, "ramp"], "ramp: its batch changes over the run"),
        ([good, "unevaluated"], "unevaluated: its metrics have no evaluation with finite losses"),
        (
            [good, make("mnist", 20, [1.0], data="mnist")],
            "the runs differ in data.validation: data.validation._target_=",
        ),
    ):
        assert main(["compare", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert main(["compare"]) == 2
    assert main(["compare", "--help"]) == 0
    assert not Path("runs").exists()
