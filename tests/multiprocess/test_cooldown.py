"""A trunk and a cooldown from any of its checkpoints are one run of both, bit for bit; the trunk stays as it is."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from largebatch.cli.composition.calling import _resume_without_effect
from largebatch.records.checkpoint import CheckpointError, newest_valid
from largebatch.records.report.caveats import _trunk
from largebatch.records.trackers import read_metrics
from largebatch.run.config.reading import ConfigError
from largebatch.run.train_quietly import train_quietly
from tests.unit.composing import compose_run

SMALL = ("data=synthetic", "model=mlp", "model.hidden=[8]", "data.limit=150", "batch.total=12", "batch.micro=4",
         "schedule.warmup=30samples", "schedule.warmup_from=zero", "observers.evaluation.every=null",
         "observers.metrics.every=1", "observers.ledger.enabled=true", "observers.checkpoint.every_minutes=null",
         "observers.checkpoint.every=48samples", "observers.checkpoint.keep=9", "length=20ep")  # fmt: skip
RAMP = ("batch.ramp.milestones=[72samples,170samples]", "batch.ramp.totals=[24,36]")
TIMES = ("wall_s", "eval/seconds", "train/samples_per_s", "time/", "memory/")
CASES: dict[str, tuple[str, ...]] = {
    "momentum, average, guard": ("optimizer=sgd", "ema.half_life=60samples", "guard.policy=skip", "guard.window=20"),
    "AdamW, ramp, noise scale": ("optimizer=adamw", *RAMP, "observers.noise_scale.every=1"),
    "LAMB, ramp": ("optimizer=lamb", *RAMP, "clip_norm=0.5"),
}


def stopped_after(folder: str, *overrides: str, step: int | None = None) -> str:
    """Train on the ranks of this world; with `step`, so many steps of this process."""
    calls = [0]

    def stop() -> bool:
        calls[0] += 1
        return calls[0] == step

    return train_quietly(compose_run(*SMALL, *overrides), folder, stop=stop).status


def content(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def end_of(folder: Path) -> dict[str, Any]:
    """Everything of the last checkpoint but what names the run: tensors as bytes, plain values."""
    saved, _ = newest_valid(folder / "checkpoints")
    assert saved is not None
    values = {key: one for key, one in saved.values.items() if key not in ("identity", "extra")}
    named = {f"{group} {key}": one for group, part in saved.tensors.items() for key, one in part.items()}
    return values | {key: one.reshape(-1).view(torch.uint8).numpy().tobytes() for key, one in named.items()}


def rows(folder: Path, after: int) -> list[dict[str, Any]]:
    """The rows of later steps: of the ledger (ids, rate and loss to the last bit) and of the metrics but times."""
    found = [*read_metrics(folder / "ledger.jsonl"), *read_metrics(folder / "metrics.jsonl")]
    kept = [{key: one for key, one in row.items() if not key.startswith(TIMES)} for row in found]
    return [row for row in kept if row["step"] > after]


@pytest.mark.parametrize(
    ("case", "of_trunk", "of_branch", "of_whole", "more"),
    [
        ("momentum, average, guard", 2, 2, 2, ()),
        ("AdamW, ramp, noise scale", 1, 1, 1, ()),
        ("LAMB, ramp", 3, 3, 3, ()),
        ("LAMB, ramp", 3, 2, 1, ("batch.reduction=ordered",)),
    ],
)
def test_cooldowns_of_one_trunk_are_runs_of_their_own_bit_for_bit(
    ranks: Any, tmp_path: Path, case: str, of_trunk: int, of_branch: int, of_whole: int, more: tuple[str, ...]
):
    """Weights, optimizer, average, guard, noise scale, sample ids, rates and losses.

    On 2 ranks two cooldowns of one trunk. The second is stopped in its middle, and goes on when the trunk is gone.
    """
    base, trunk = (*CASES[case], *more), tmp_path / "trunk"
    assert set(ranks(of_trunk).run(stopped_after, str(trunk), *base, "schedule=constant", step=17)) == {"stopped"}
    before = content(trunk)
    saved = sorted((trunk / "checkpoints").iterdir())
    several = [(1, "sqrt"), (-2, "linear")] if of_trunk == 2 else [(2, "sqrt")]
    for number, (place, shape) in enumerate(several):
        at = saved[place]
        start = newest_valid(at.parent, up_to=int(at.name[5:]))[0]
        assert start is not None
        step, samples = start.step, start.values["samples_seen"]
        branch, whole = tmp_path / f"branch_{number}", tmp_path / f"whole_{number}"
        cooled = (*base, "schedule=constant", f"cooldown.checkpoint={at}", "cooldown.length=110samples",
                  f"cooldown.shape={shape}", "cooldown.end_factor=0.1")  # fmt: skip
        if number == 0:
            ranks(of_branch).run(stopped_after, str(branch), *cooled)
            assert content(trunk) == before, "the trunk is left untouched"
        else:
            stopped = ranks(of_branch).run(stopped_after, str(branch), *cooled, step=2)
            assert set(stopped) == {"stopped"}
            shutil.rmtree(trunk)
            ranks(of_branch).run(stopped_after, str(branch), *cooled, "resume=auto")
        wsd = ("schedule=wsd", "schedule.cooldown=110samples", f"schedule.cooldown_shape={shape}",
               "schedule.end_factor=0.1", f"length={samples + 110}samples")  # fmt: skip
        ranks(of_whole).run(stopped_after, str(whole), *base, *wsd)
        ours, theirs = end_of(branch), end_of(whole)
        if of_branch == of_whole:
            assert [key for key in theirs.keys() | ours.keys() if ours.get(key) != theirs.get(key)] == []
            assert rows(branch, step) == rows(whole, step)
        else:  # metrics of several ranks have more columns
            assert all(ours[key] == one for key, one in theirs.items() if isinstance(one, bytes))
            ids = [[row for row in rows(one, step) if "ids" in row] for one in (branch, whole)]
            assert ids[0] == ids[1] != []
        assert rows(branch, 0) == rows(branch, step), "it has the steps of its own, and no others"


def test_a_cooldown_of_a_decaying_run_begins_at_the_rate_of_its_place(tmp_path: Path):
    base, trunk = ("optimizer=sgd", "length=10ep"), tmp_path / "trunk"
    stopped_after(str(trunk), *base, "schedule=cosine", step=12)
    at = trunk / "checkpoints" / "step_00000008"
    cooled = (*base, "schedule=cosine", f"cooldown.checkpoint={at}", "cooldown.length=60samples")
    assert stopped_after(str(tmp_path / "branch"), *cooled) == "finished"
    rates = {row["samples_seen"] - 12: float.fromhex(row["lr"]) for row in rows(tmp_path / "branch", 0) if "ids" in row}
    trunks = {row["samples_seen"] - 12: float.fromhex(row["lr"]) for row in rows(trunk, 0) if "ids" in row}
    expected = {96 + past: trunks[96] * (1 - past / 60) for past in (0, 12, 24, 36, 48)}
    assert rates == pytest.approx(expected, rel=1e-14)

    with pytest.raises(CheckpointError, match=r"schedule.decay was cosine, now constant"):
        stopped_after(str(tmp_path / "other"), *cooled, "schedule=constant")
    inside = tmp_path / "branch" / "checkpoints" / "step_00000012"
    with pytest.raises(CheckpointError, match="lies inside a cooldown"):
        stopped_after(str(tmp_path / "other"), *cooled, f"cooldown.checkpoint={inside}")
    with pytest.raises(CheckpointError, match=r"cooldown.samples was 60, now 72"):
        stopped_after(str(tmp_path / "branch"), *cooled, "cooldown.length=72samples", "resume=auto")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("cooldown.checkpoint={trunk}",), "needs the length"),
        (("cooldown.length=1ep",), "has no effect without cooldown.checkpoint"),
        (("cooldown.checkpoint={trunk}/checkpoints", "cooldown.length=1ep"), r"such as .*step_0000000\d"),
        (("cooldown.checkpoint={trunk}/checkpoints/step_00000009", "cooldown.length=1ep"), "no such folder"),
        (("cooldown.checkpoint={at}", "cooldown.length=11samples"), "less than one batch of 12"),
        (("cooldown.checkpoint={at}", "cooldown.length=1ep", "schedule.warmup=60samples"), "the warmup lasts until 60"),
        (("cooldown.checkpoint={at}", "cooldown.length=1ep", "length=40samples"), "the trunk has 40"),
        (("cooldown.checkpoint={at}", "cooldown.length=5steps", *RAMP), "a number of steps is not a number of samples"),
        (("cooldown.checkpoint={at}", "cooldown.length=1ep", "run.dir={trunk}", "resume=auto"), "folder of the trunk"),
    ],
)
def test_what_is_no_cooldown_is_refused_before_anything_is_written(
    trunk: Path, tmp_path: Path, overrides: tuple[str, ...], told: str
):
    given = [one.format(trunk=trunk, at=trunk / "checkpoints" / "step_00000004") for one in overrides]
    own = [one.partition("=")[2] for one in given if one.startswith("run.dir=")]
    before = content(trunk)
    with pytest.raises(ConfigError, match=told):
        stopped_after(own[0] if own else str(tmp_path / "run"), "optimizer=sgd", "schedule=constant", *given)
    assert not (tmp_path / "run").exists()
    assert content(trunk) == before


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cooldown") / "trunk"
    stopped_after(str(folder), "optimizer=sgd", "schedule=constant", step=4)
    return folder


def test_verbs_that_go_on_from_no_run_refuse_a_cooldown():
    assert "goes on from no run" in _resume_without_effect("verify", "none", "runs/trunk/checkpoints/step_00000004")
    assert _resume_without_effect("train", "none", "runs/trunk/checkpoints/step_00000004") == ""
    assert _resume_without_effect("plan", "none", "runs/trunk/checkpoints/step_00000004") == ""


def test_the_report_says_which_run_a_cooldown_left():
    trunk = {"checkpoint": "runs/trunk/step_4", "step": 4, "samples_seen": 4800}
    assert _trunk("mine", {"trunk": trunk}) == "mine leaves runs/trunk/step_4 after 4,800 samples"
    assert _trunk("mine", {"trunk": {"samples_seen": "many"}}) == _trunk("mine", {}) == ""
