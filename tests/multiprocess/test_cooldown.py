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
from largebatch.run.config.reading import ConfigError, parse_config
from largebatch.run.derive import derive
from largebatch.run.train_quietly import train_quietly
from largebatch.run.trunk import Trunk, trunk_of
from tests.unit.composing import compose_run

SMALL = ("data=synthetic", "model=mlp", "model.hidden=[8]", "data.limit=150", "batch.total=12", "batch.micro=4",
         "schedule.warmup=30samples", "schedule.warmup_from=zero", "observers.evaluation.every=null",
         "observers.metrics.every=1", "observers.ledger.enabled=true", "observers.checkpoint.every_minutes=null",
         "observers.checkpoint.every=96samples", "observers.checkpoint.keep=9", "length=20ep",
         "run.predict_from=none")  # fmt: skip
RAMP = ("batch.ramp.milestones=[72samples,130samples]", "batch.ramp.totals=[24,36]")
TIMES = ("wall_s", "eval/seconds", "train/samples_per_s", "time/", "memory/")
FALLING = ("optimizer=sgd", "length=10ep", "schedule=cosine")
CASES: dict[str, tuple[str, ...]] = {
    "momentum, average, guard": ("optimizer=sgd", "ema.half_life=60samples", "guard.policy=skip", "guard.window=20"),
    "AdamW, ramp, noise scale": ("optimizer=adamw", "scaling=sde_timescale", *RAMP, "observers.noise_scale.every=1"),
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


def at_samples(trunk: Path, samples: int) -> tuple[str, int]:
    """The checkpoint after so many samples, and its step."""
    for path in sorted((trunk / "checkpoints").iterdir()):
        saved = newest_valid(path.parent, up_to=int(path.name[5:]))[0]
        if saved is not None and saved.values["samples_seen"] == samples:
            return str(path), saved.step
    raise AssertionError(f"no checkpoint after {samples} samples")


def cooling(at: str, samples: int, shape: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a cooldown adds to its trunk, and what makes the same run of it with the decay wsd."""
    branch = ("schedule=constant", f"cooldown.checkpoint={at}", "cooldown.length=110samples",
              f"cooldown.shape={shape}", "cooldown.end_factor=0.1")  # fmt: skip
    whole = ("schedule=wsd", "schedule.cooldown=110samples", f"schedule.cooldown_shape={shape}",
             "schedule.end_factor=0.1", f"length={samples + 110}samples")  # fmt: skip
    return branch, whole


def same_run(branch: Path, whole: Path, step: int, *, same_ranks: bool = True) -> None:
    """Assert that from `step` on they are one run; on other ranks its metrics have other columns."""
    ours, theirs = end_of(branch), end_of(whole)
    if same_ranks:
        assert [key for key in theirs.keys() | ours.keys() if ours.get(key) != theirs.get(key)] == []
        assert rows(branch, step) == rows(whole, step)
    else:
        assert all(ours[key] == one for key, one in theirs.items() if isinstance(one, bytes))
        ids = [[row for row in rows(one, step) if "ids" in row] for one in (branch, whole)]
        assert ids[0] == ids[1] != []
    assert rows(branch, 0) == rows(branch, step), "it has the steps of its own, and no others"


def test_two_cooldowns_of_one_trunk_are_runs_of_their_own_bit_for_bit(ranks: Any, tmp_path: Path):
    """Weights, optimizer, noise scale, sample ids, rates and losses; the batch grows before and in the first one."""
    base, trunk, one = CASES["AdamW, ramp, noise scale"], tmp_path / "trunk", ranks(1)
    assert one.run(stopped_after, str(trunk), *base, "schedule=constant", step=9) == ["stopped"]
    before = content(trunk)
    for samples, shape in ((96, "sqrt"), (180, "linear")):
        (at, step), branch, whole = at_samples(trunk, samples), tmp_path / f"b_{shape}", tmp_path / f"w_{shape}"
        cooled, wsd = cooling(at, samples, shape)
        assert one.run(stopped_after, str(branch), *base, *cooled) == ["finished"]
        assert content(trunk) == before, "the trunk is left untouched"
        one.run(stopped_after, str(whole), *base, *wsd)
        same_run(branch, whole, step)


def test_a_cooldown_on_two_ranks_goes_on_after_a_stop_when_the_trunk_is_gone(ranks: Any, tmp_path: Path):
    """As one run without a stop, also in momentum, average and guard. First the trunk is damaged, then it is gone."""
    base, trunk, two = CASES["momentum, average, guard"], tmp_path / "trunk", ranks(2)
    two.run(stopped_after, str(trunk), *base, "schedule=constant", step=9)
    (at, step), branch, whole = at_samples(trunk, 96), tmp_path / "branch", tmp_path / "whole"
    cooled, wsd = cooling(at, 96, "linear")
    assert set(two.run(stopped_after, str(branch), *base, *cooled, step=2)) == {"stopped"}
    (Path(at) / "values.json").unlink()  # as where the trunk is just removing it
    with pytest.raises(ConfigError, match=r"values.json"):
        trunk_of(parse_config(compose_run(*base, *cooled, f"run.dir={branch}")))
    assert trunk_of(parse_config(compose_run(*base, *cooled, f"run.dir={branch}", "resume=auto"))) == Trunk(
        Path(at), step, 96
    )
    shutil.rmtree(trunk)
    assert set(two.run(stopped_after, str(branch), *base, *cooled, "resume=auto")) == {"finished"}
    two.run(stopped_after, str(whole), *base, *wsd)
    same_run(branch, whole, step)


def test_a_cooldown_on_other_ranks_than_its_trunk_is_the_run_of_one_rank(ranks: Any, tmp_path: Path):
    """On three ranks, of a trunk on one, with ordered sums: LAMB, a ramp, clipping."""
    base, trunk = (*CASES["LAMB, ramp"], "batch.reduction=ordered"), tmp_path / "trunk"
    ranks(1).run(stopped_after, str(trunk), *base, "schedule=constant", step=7)
    (at, step), branch, whole = at_samples(trunk, 96), tmp_path / "branch", tmp_path / "whole"
    cooled, wsd = cooling(at, 96, "sqrt")
    ranks(1).run(stopped_after, str(whole), *base, *wsd)
    assert set(ranks(3).run(stopped_after, str(branch), *base, *cooled)) == {"finished"}
    same_run(branch, whole, step, same_ranks=False)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cooldown") / "trunk"
    stopped_after(str(folder), *FALLING, step=9)
    return folder


def test_a_cooldown_of_a_decaying_run_begins_at_the_rate_of_its_place(trunk: Path, tmp_path: Path):
    at = trunk / "checkpoints" / "step_00000008"
    cooled = (*FALLING, f"cooldown.checkpoint={at}", "cooldown.length=60samples")
    recorded = ("observers.profile.steps=1",)  # after 5 that warm up: 6 of the trunk's steps, and 5 of the cooldown's
    with pytest.raises(ConfigError, match=r"the cooldown has 5 steps, and 5 warm up"):
        derive(parse_config(compose_run(*SMALL, *cooled, *recorded)), num_samples=150, world_size=1)
    assert stopped_after(str(tmp_path / "branch"), *cooled) == "finished"
    rates = {row["samples_seen"] - 12: float.fromhex(row["lr"]) for row in rows(tmp_path / "branch", 0) if "ids" in row}
    trunks = {row["samples_seen"] - 12: float.fromhex(row["lr"]) for row in rows(trunk, 0) if "ids" in row}
    expected = {96 + past: trunks[96] * (1 - past / 60) for past in (0, 12, 24, 36, 48)}
    assert rates == pytest.approx(expected, rel=1e-14)

    told = "schedule.decay was cosine, now constant; .* A cooldown has the values of its trunk: .* cooldown.checkpoint"
    with pytest.raises(CheckpointError, match=told):
        stopped_after(str(tmp_path / "other"), *cooled, "schedule=constant")
    inside = tmp_path / "branch" / "checkpoints" / "step_00000013"
    with pytest.raises(CheckpointError, match="lies inside a cooldown"):
        stopped_after(str(tmp_path / "other"), *cooled, f"cooldown.checkpoint={inside}")
    with pytest.raises(CheckpointError, match=r"cooldown.samples was 60, now 72"):
        stopped_after(str(tmp_path / "branch"), *cooled, "cooldown.length=72samples", "resume=auto")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("cooldown.checkpoint={trunk}",), "needs the length"),
        (("cooldown.length=1ep",), "has no effect without cooldown.checkpoint"),
        (("cooldown.checkpoint={trunk}/checkpoints", "cooldown.length=1ep"), r"such as .*step_000000\d\d"),
        (("cooldown.checkpoint={trunk}/checkpoints/step_00000007", "cooldown.length=1ep"), "no such folder"),
        (("cooldown.checkpoint={at}", "cooldown.length=11samples"), "less than one batch of 12"),
        (("cooldown.checkpoint={at}", "cooldown.length=1ep", "schedule.warmup=99samples"), "the warmup lasts until 99"),
        (("cooldown.checkpoint={at}", "cooldown.length=1ep", "length=40samples"), "the trunk has 40"),
        (("cooldown.checkpoint={at}", "cooldown.length=5steps", *RAMP), "a number of steps is not a number of samples"),
        (("cooldown.checkpoint={at}", "cooldown.length=1ep", "run.dir={trunk}", "resume=auto"), "folder of the trunk"),
    ],
)
def test_what_is_no_cooldown_is_refused_before_anything_is_written(
    trunk: Path, tmp_path: Path, overrides: tuple[str, ...], told: str
):
    given = [one.format(trunk=trunk, at=trunk / "checkpoints" / "step_00000008") for one in overrides]
    own = [one.partition("=")[2] for one in given if one.startswith("run.dir=")]
    before = content(trunk)
    with pytest.raises(ConfigError, match=told):
        stopped_after(own[0] if own else str(tmp_path / "run"), *FALLING, *given)
    assert not (tmp_path / "run").exists()
    assert content(trunk) == before


def test_verbs_that_go_on_from_no_run_refuse_a_cooldown():
    assert "goes on from no run" in _resume_without_effect("verify", "none", "runs/trunk/checkpoints/step_00000004")
    assert _resume_without_effect("train", "none", "runs/trunk/checkpoints/step_00000004") == ""
    assert _resume_without_effect("plan", "none", "runs/trunk/checkpoints/step_00000004") == ""


def test_the_report_says_which_run_a_cooldown_left():
    trunk = {"checkpoint": "runs/trunk/step_4", "step": 4, "samples_seen": 4800}
    assert _trunk("mine", {"trunk": trunk}) == "mine leaves runs/trunk/step_4 after 4,800 samples"
    assert _trunk("mine", {"trunk": {"samples_seen": "many"}}) == _trunk("mine", {}) == ""
