"""Whole runs through the command line, in this process."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import wandb
from safetensors.torch import load_file

from largebatch.__main__ import main
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import OneByOne
from largebatch.records.folder_lock import FolderLock
from largebatch.records.trackers import read_metrics
from tests.reference.wandb_file import read_run

SMALL = [
    "data=digits",
    "data.limit=128",
    "data.augment.crop_padding=1",
    "batch.total=24",
    "batch.max_micro=9",
    "length=40steps",
    "schedule.warmup=5steps",
    "observers.evaluation.every=20steps",
    "observers.metrics.every=5",
]


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No W&B key, no home, no launcher."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.argv", ["largebatch"])


def train(folder: Path, *overrides: str) -> int:
    model = [] if any(override.startswith("model=") for override in overrides) else ["model=convnet", "model.width=4"]
    return main(["train", *SMALL, *model, f"run.dir={folder}", "logger=none", "observers.progress=false", *overrides])


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def test_the_run_folder_holds_everything_about_the_run(tmp_path, capsys):
    assert train(tmp_path / "run", "logger.plots=true") == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.yaml", "overrides.txt", "environment.json", "plan.json", "metrics.jsonl", "summary.json", "plots",
        "checkpoints", "history.jsonl", ".lock",
    }  # fmt: skip
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["global_batch_size"] == 24
    assert plan["peak_lr"]["formula"] == "base_lr * global_batch_size / base_batch_size"
    assert plan["peak_lr"]["value"] == plan["peak_lr"]["inputs"]["base_lr"] * 24 / 32
    assert plan["rank_batch_sizes"] == [24]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(5, 41, 5))
    assert [row["step"] for row in rows if "eval/val_loss" in row] == [20, 40]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["problems"]) == ("finished", 40, [])
    assert summary["eval/val_loss"] == rows[-1]["eval/val_loss"]
    printed = capsys.readouterr().out
    assert printed.index("global batch") < printed.index("finished"), "the plan comes first, the summary last"
    assert str(tmp_path / "run" / "plots" / "training.png") in printed


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_rows_of_every_layer_come_on_request_and_change_nothing(tmp_path, capsys, optimizer):
    options = [f"optimizer={optimizer}", "length=10steps"]
    assert train(tmp_path / "plain", *options) == 0
    assert train(tmp_path / "layers", *options, "observers.layers.every=3", "logger.plots=true") == 0
    one, other = weights(tmp_path / "plain", 10), weights(tmp_path / "layers", 10)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "plain" / "layers.jsonl").exists()
    rows = read_metrics(tmp_path / "layers" / "layers.jsonl")
    assert [row["step"] for row in rows] == [3, 6, 9]
    names = {name for name in one if "running" not in name and "num_batches" not in name}
    assert {key.removeprefix("update_to_weight/") for key in rows[0] if key.startswith("update")} == names
    adapting = {name for name in names if one[name].ndim > 1} if optimizer == "lars" else set()
    assert {key.removeprefix("trust_ratio/") for key in rows[0] if key.startswith("trust")} == adapting
    summaries = [row for row in read_metrics(tmp_path / "layers" / "metrics.jsonl") if "update_to_weight/median" in row]
    assert [row["step"] for row in summaries] == [3, 6, 9]
    assert all(("trust_ratio/q25" in row) == (optimizer == "lars") for row in summaries)
    pictures = {path.name for path in (tmp_path / "layers" / "plots").iterdir()}
    assert ("trust_ratio.png" in pictures) == (optimizer == "lars")
    assert "update_to_weight.png" in pictures
    assert "update_to_weight.png" in capsys.readouterr().out


def test_the_offline_wandb_run_tells_the_same_story_as_metrics_jsonl(tmp_path):
    assert train(tmp_path / "run", "logger=default") == 0
    wandb.teardown()  # in one process, its last block is written in the background
    run = read_run(tmp_path / "run" / "wandb")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    logged = [
        {key: value for key, value in row.items() if not key.startswith(("_", "plots/"))}
        for row in run.history
        if "train/loss" in row or "eval/val_loss" in row
    ]
    assert logged == rows
    assert run.step_metrics["*"] == "samples_seen"
    assert run.config["plan"]["global_batch_size"] == 24
    assert run.config["config"]["optimizer"]["_target_"] == "torch.optim.SGD"
    best = max(row["eval/val_accuracy"] for row in rows if "eval/val_accuracy" in row)
    assert run.summary["eval/val_accuracy"]["max"] == best
    assert run.summary["status"] == "finished"


LEDGER = ["observers.ledger.enabled=true", "observers.ledger.parameters_every=4"]


def test_the_ledger_of_a_resumed_run_equals_that_of_an_uninterrupted_one_line_by_line(tmp_path, capsys):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = [*LEDGER, "observers.checkpoint.every=17steps", "observers.checkpoint.keep=9"]
    assert train(whole, *options) == 0
    lines = (whole / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 41))
    shutil.copytree(whole, resumed)
    for step in (34, 40):
        shutil.rmtree(resumed / "checkpoints" / f"step_{step:08d}")
    torn = "".join(f"{line}\n" for line in lines[:23]) + lines[23][:50]  # killed while it wrote row 24
    (resumed / "ledger.jsonl").write_text(torn)
    assert train(resumed, *options, "resume=auto") == 0
    assert (resumed / "ledger.jsonl").read_text().splitlines() == lines
    aside = (resumed / "ledger.stale-1.jsonl").read_text().splitlines()
    assert aside == [*lines[17:23], lines[23][:50]]
    assert main(["diff", str(whole), str(resumed)]) == 0
    assert main(["diff", str(whole / "ledger.jsonl"), str(resumed / "ledger.stale-1.jsonl")]) == 0
    assert "torn lines left out: 7" in capsys.readouterr().out


@pytest.mark.fault(27, "disk full for records", "goes on, loss counted")
def test_a_ledger_that_cannot_be_written_costs_rows_and_not_the_run(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    write = os.write

    def full(file: int, data: bytes) -> int:
        if os.readlink(f"/proc/self/fd/{file}").endswith("ledger.jsonl"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    monkeypatch.setattr(os, "write", full)
    assert train(folder, *LEDGER, "length=6steps") == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    (problem,) = summary["problems"]
    assert problem.startswith("ledger.jsonl: a row was lost: OSError: [Errno 28]")
    assert problem.endswith("(6 times)")


@pytest.mark.fault(38, "other model, optimizer, data or seed on resume", "refused, keys and values")
@pytest.mark.bad_input("no checkpoint to resume, or none that is valid")
def test_resume_refuses_another_run_and_names_what_changed(tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(folder) == 0
    written = (folder / "summary.json").stat().st_mtime_ns
    summary = json.loads((folder / "summary.json").read_text())
    assert train(folder, "resume=auto", "seed=1", "model.width=5") == 2
    printed = capsys.readouterr().err
    assert "seed was 0, now 1" in printed
    assert "model.width was 4, now 5" in printed
    assert train(folder, "resume=auto") == 0
    assert "already finished" in capsys.readouterr().out
    assert (folder / "summary.json").stat().st_mtime_ns == written
    for left in (None, {"status": "stopped", "steps": 1}):  # by a process that was killed behind its last checkpoint
        (folder / "summary.json").unlink() if left is None else (folder / "summary.json").write_text(json.dumps(left))
        assert train(folder, "resume=auto") == 0
        again = json.loads((folder / "summary.json").read_text())
        times = {"train_seconds": 0, "samples_per_s": 0, "measured": None}  # what this process did not measure itself
        assert again | times == summary | times
    assert train(folder) == 2, "a folder that holds a run is not overwritten"
    assert "resume=auto" in capsys.readouterr().err
    assert train(tmp_path / "other", f"resume={tmp_path}") == 2
    assert "no valid checkpoint" in capsys.readouterr().err


@pytest.mark.fault(39, "other length or schedule on resume", "needs a permission, recorded")
def test_a_run_goes_on_longer_where_that_is_allowed_and_its_history_says_so(tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(folder, "length=6steps") == 0
    assert train(folder, "length=9steps", "resume=auto") == 2
    assert "resume_allow=[length]" in capsys.readouterr().err
    assert train(folder, "length=9steps", "resume=auto", "resume_allow=[length]") == 0
    assert "length was 6steps, now 9steps" in capsys.readouterr().out
    begun, resumed = read_metrics(folder / "history.jsonl")
    assert (begun["step"], begun["changed"]) == (0, [])
    assert (resumed["step"], resumed["changed"]) == (6, [{"key": "length", "was": "6steps", "now": "9steps"}])
    assert train(folder, "length=9steps", "resume=auto") == 0, "the permission is needed once"


@pytest.mark.fault(34)
@pytest.mark.bad_input("a run folder in use")
def test_a_folder_that_another_process_writes_to_is_refused(tmp_path, capsys):
    with FolderLock(tmp_path / "run"):
        assert train(tmp_path / "run") == 2
    assert "is in use by process" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_diverged_run_says_so_and_saves_nothing(tmp_path, capsys):
    assert train(tmp_path / "run", "scaling.base_lr=1e30", "schedule.warmup=0ep") == 1
    assert "diverged" in capsys.readouterr().out
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.fault(22)
def test_weights_that_are_not_numbers_never_replace_a_good_checkpoint(tmp_path, monkeypatch, capsys):
    """Divergence is noticed a little later than it happens: a checkpoint in between must not be made of it."""
    original, steps = Runtime.step, itertools.count(1)

    def overflow_at_step_three(runtime, optimizer):
        original(runtime, optimizer)
        if next(steps) == 3:
            next(iter(optimizer.param_groups[0]["params"])).data.fill_(float("inf"))

    monkeypatch.setattr(Runtime, "step", overflow_at_step_three)
    folder = tmp_path / "run"
    options = ["observers.checkpoint.every=1steps", "observers.checkpoint.keep=1", "observers.evaluation.every=null"]
    assert train(folder, *options) == 1
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000002"]
    printed = capsys.readouterr().out
    assert "checkpoints: one was not saved: NotSavedError: at step 3 blocks.0.0.weight is not finite" in printed


def test_multirun_outside_a_launcher_sweeps(tmp_path):
    code = main(
        ["train", "--multirun", *SMALL, "length=2steps", "schedule.warmup=0ep", f"run.root={tmp_path}", "logger=none",
         "observers.progress=false", "observers.evaluation.every=null", "seed=1,2"]
    )  # fmt: skip
    assert code == 0
    runs = sorted((tmp_path / "digits").iterdir())
    seeds = [(run / "overrides.txt").read_text().split("seed=")[1].strip() for run in runs]
    assert seeds == ["1", "2"]


def test_debug_overfit_drives_the_training_loss_to_zero(tmp_path):
    assert main(["train", "debug=overfit", f"run.dir={tmp_path / 'run'}", "observers.progress=false"]) == 0
    losses = [row["train/loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    assert losses[0] > 1
    assert losses[-1] < 0.05


def test_a_contrastive_run_learns_in_micro_batches(tmp_path):
    assert main(
        ["train", "data=paired_views", "batch.total=64", "batch.max_micro=7", "length=4ep", "precision=fp64",
         "observers.evaluation.micro=32", "logger=none", "observers.progress=false", f"run.dir={tmp_path}"]
    ) == 0  # fmt: skip
    # By chance 1 in 32 views is found.
    assert json.loads((tmp_path / "summary.json").read_text())["eval/val_accuracy"] > 0.4


def test_bench_loop_refuses_what_its_rivals_cannot_do(capsys):
    assert main(["bench", "loop", "data=paired_views", "logger=none"]) == 2
    assert "the hand-written loop: does not go with loss._target_=largebatch.losses.InfoNCE" in capsys.readouterr().err
    overrides = ["batch.total=101", "batch.max_micro=33", "precision=fp64", "loss.weight=[1,1,1,1,1,1,1,1,1,2]"]
    assert main(["bench", "loop", *overrides, "data.augment.crop_padding=1", "logger=none"]) == 2
    said = capsys.readouterr().err
    for key in ("loss._target_=", "data.augment:", "precision.compute=fp64:", "batch.total=101:"):
        assert key in said


def test_debug_profile_writes_a_trace(tmp_path):
    assert main(["train", "debug=profile", f"run.dir={tmp_path / 'run'}", "model.width=4"]) == 0
    trace = json.loads((tmp_path / "run" / "trace.json").read_text())
    assert any("conv" in str(event.get("name")) for event in trace["traceEvents"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=lars", "precision.activation_checkpointing=true"],
        ["optimizer=adamw", "precision=bf16", "batch=full", "length=20ep", "schedule.warmup=1ep"],
        ["optimizer=muon", "model=mlp", "model.hidden=[16]", "batch=sgd"],
        ["logger=tensorboard", "batch.micro=7", "schedule=step", "schedule.milestones=[2ep,4ep]"],
        ["model=resnet18", "length=1steps", "schedule.warmup=0ep", "observers.evaluation.every=null", "batch.total=6"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_the_choices_train(tmp_path, overrides):
    """Every optimizer, precision and batch form finishes with a finite validation loss."""
    assert train(tmp_path / "run", "observers.progress=false", *overrides) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert 0 < summary["eval/val_loss"] < 5
    if overrides[0] == "logger=tensorboard":
        assert list((tmp_path / "run" / "tensorboard").glob("events*"))


MINE = """
import torch
from torch import nn

class Images(torch.utils.data.Dataset):
    def __init__(self, split):
        self.count = 64 if split == "train" else 16

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"pixels": torch.randn(8) + 3 * (index % 2), "label": index % 2}

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, pixels):
        return self.layers(pixels)
"""


def test_a_model_and_a_data_set_of_the_users_own_train_and_do_not_depend_on_workers(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for group, text in (
        ("model", "_target_: mine.Net\nwidth: 16\n"),
        ("data", "name: mine\ntrain: {_target_: mine.Images, split: train}\n"
                 "validation: {_target_: mine.Images, split: validation}\n"),
    ):  # fmt: skip
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "mine.yaml").write_text(text)
    for workers in (0, 1):
        assert main(
            ["train", "--config-dir", str(tmp_path / "conf"), "model=mine", "data=mine", "batch.total=16", "length=3ep",
             "schedule.warmup=0ep", "scaling.base_lr=0.5", "logger=none", "observers.progress=false",
             f"data.num_workers={workers}", f"run.dir={tmp_path / str(workers)}"]
        ) == 0  # fmt: skip
    assert json.loads((tmp_path / "0" / "summary.json").read_text())["eval/val_accuracy"] > 0.9
    ours, theirs = weights(tmp_path / "0", 12), weights(tmp_path / "1", 12)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_hugging_face_model_learns_a_text(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.GPT2Config(
        vocab_size=5, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    ).save_pretrained(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text("abcde" * 400)
    code = main(
        ["train", "data=text", f"data.path={tmp_path / 'text.txt'}", "data.vocab_size=5", "data.context_length=8",
         "model=hugging_face", "model.auto_class=AutoModelForCausalLM", f"model.name={tmp_path / 'tiny'}",
         "model.pretrained=false", "optimizer=adamw", "scaling.base_lr=0.02", "batch.total=16", "batch.max_micro=5",
         "length=60steps", "schedule.warmup=0ep", "logger=none", "observers.progress=false",
         f"run.dir={tmp_path / 'run'}"]
    )  # fmt: skip
    assert code == 0
    # After one letter the next one is certain.
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["eval/val_accuracy"] == 1.0


def test_the_noise_scale_reaches_rows_and_summary(tmp_path, capsys):
    options = ["data=synthetic", "model=linear", "batch.total=40", "batch.max_micro=8", "length=60steps"]
    options += ["observers.noise_scale.every=2", "observers.noise_scale.groups={weights: [weight], bias: [bias]}"]
    assert train(tmp_path / "run", *options, "scaling.base_lr=1e-6") == 0
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "noise_scale/trace" in row]
    assert [row["step"] for row in rows] == list(range(2, 61, 2))
    assert not any("noise_scale/b_simple" in row for row in rows[:19]), "less than twenty measurements are no evidence"
    last = rows[-1]
    assert 0 < last["noise_scale/ci_low"] < last["noise_scale/b_simple"] < last["noise_scale/ci_high"]
    assert last["noise_scale/b_simple"] == pytest.approx(last["noise_scale/trace"] / last["noise_scale/grad_sq_norm"])
    assert last["noise_scale/sample_efficiency"] + last["noise_scale/step_efficiency"] == pytest.approx(1)
    of_groups = [last[f"noise_scale/{name}/trace"] for name in ("weights", "bias")]
    assert sum(of_groups) == pytest.approx(last["noise_scale/trace"])
    output = capsys.readouterr().out
    assert f"{last['noise_scale/b_simple']:,.0f} samples (95 %: " in output
    assert "noise scale, weights" in output
    assert "noise scale, bias" in output


def test_a_ramp_goes_from_one_micro_batch_that_is_split_to_several(tmp_path):
    options = ["data=synthetic", "model=linear", "batch.total=8", "batch.max_micro=8", "length=160samples"]
    ramp = ["batch.ramp.milestones=[80samples]", "batch.ramp.totals=[16]", "schedule=constant", "schedule.warmup=0ep"]
    ramp += ["observers.evaluation.every=null"]
    assert train(tmp_path / "run", *options, *ramp, "observers.noise_scale.every=1") == 0
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "noise_scale/trace" in row]
    assert [row["samples_seen"] for row in rows] == [*range(8, 81, 8), *range(96, 161, 16)]
    assert min(row["noise_scale/trace"] for row in rows) > 0


def test_sharpness_during_a_run_is_that_of_its_checkpoints_and_changes_no_bit(tmp_path):
    options = ["model=mlp", "model.hidden=[8]", "data.augment.crop_padding=0", "observers.checkpoint.every=4steps"]
    options += ["length=8steps"]
    watched = [
        "observers.sharpness.every=4steps", "observers.sharpness.samples=32", "observers.sharpness.m=16",
        "observers.sharpness.trace_samples=4", "observers.sharpness.lanczos_tolerance=1e-6",
    ]  # fmt: skip
    assert train(tmp_path / "plain", *options) == 0
    assert train(tmp_path / "watched", *options, *watched, "logger.plots=true") == 0
    plain = weights(tmp_path / "plain", 8)
    assert all(torch.equal(one, plain[name]) for name, one in weights(tmp_path / "watched", 8).items())
    rows = [row for row in read_metrics(tmp_path / "watched" / "metrics.jsonl") if "sharpness/trace" in row]
    assert [row["step"] for row in rows] == [4, 8]
    assert (tmp_path / "watched" / "plots" / "sharpness.png").stat().st_size > 10_000
    same = [
        "data=digits", "data.limit=128", *options[:2], "measure.samples=32", "measure.sharpness.m=16",
        "measure.sharpness.trace_samples=4",
        "measure.sharpness.line_points=0", "measure.sharpness.plane_points=0", "measure.sharpness.box_iterations=0",
    ]  # fmt: skip
    for row in rows:
        checkpoint = tmp_path / "watched" / "checkpoints" / f"step_{row['step']:08d}"
        out = tmp_path / f"measured_{row['step']}"
        assert main(["measure", "sharpness", *same, f"measure.checkpoint={checkpoint}", f"run.dir={out}"]) == 0
        record = json.loads((out / "sharpness.json").read_text())["numbers"]
        assert record["box"] is None
        assert row["sharpness/lambda_max"] == pytest.approx(record["lambda_max"]["value"], rel=1e-4)
        assert row["sharpness/trace"] == pytest.approx(record["trace"]["value"], rel=1e-4)
        assert row["sharpness/m_sharpness"] == pytest.approx(record["m_sharpness"]["value"], rel=1e-4)


@pytest.mark.fault(56)
def test_a_run_without_enough_memory_lowers_its_micro_batches_and_says_so(tmp_path, capsys, monkeypatch):
    accumulate = OneByOne.__call__

    def short(self, step, *others):
        if step.plan.max_micro_batch_size > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        return accumulate(self, step, *others)

    with monkeypatch.context() as patched:
        patched.setattr(OneByOne, "__call__", short)
        assert train(tmp_path / "short", "length=10steps", "batch.on_out_of_memory=lower") == 0
    said = capsys.readouterr().out
    assert "out of memory in step 1 (rank 0): from there on micro-batches hold at most 4 samples in place of 8" in said
    assert "To begin so: batch.max_micro=4" in said
    rows = read_metrics(tmp_path / "short" / "metrics.jsonl")
    assert [(row["step"], row["batch/max_micro"]) for row in rows if "batch/max_micro" in row] == [(1, 4)]
