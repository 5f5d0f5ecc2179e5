"""What is wrong with a run is found before any process group, all of it in one report, with key and remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from largebatch.batch.random_keys import stream_key
from largebatch.data import ArrayDataset
from largebatch.losses import CrossEntropy
from largebatch.optim.kernels.compiler import has_compiler, kernels
from largebatch.run.checks import machine as preconditions
from largebatch.run.config.reading import ConfigError
from largebatch.run.method_rows import method_rows
from largebatch.run.plan_report import checkpoint_row, plan_record, plan_rows
from largebatch.run.precision.device import Device
from largebatch.run.prepare import Prepared, prepare
from tests.unit.composing import GROUPS, compose_run

HERE = "tests.unit.run.test_prepare"
SMALL = ("data=synthetic", "model=linear", "logger=none", "length=4ep", "schedule.warmup=1ep")
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TWO_RANKS = MEETING | {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
V100 = Device("V100", (7, 0))
EIGHT_RANKS = MEETING | {"WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0"}


class WithUnused(nn.Linear):
    """A model with a layer that its forward pass leaves out."""

    def __init__(self, in_features: int, num_outputs: int, *, frozen: bool = False) -> None:
        super().__init__(in_features, num_outputs)
        self.spare = nn.Linear(2, 2)
        self.spare.requires_grad_(not frozen)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs.flatten(1))


class Stumbles(WithUnused):
    """A model that fails in a way that has nothing to do with torch."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        raise KeyError("pixel_values")


class Counted(nn.Linear):
    """A model that says how often it was made."""

    count = 0

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        Counted.count += 1

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs.flatten(1))


class Items:
    """A map-style set that is not in memory."""

    def __init__(self, count: int = 64) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 8, 8), float(index)), index % 10


def labels_that_grow(count: int = 64) -> ArrayDataset:
    """Sample i has label 0 but for the last one, which has 9."""
    targets = torch.zeros(count, dtype=torch.int64)
    targets[-1] = 9
    return ArrayDataset(torch.zeros(count, 1, 8, 8), targets)


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPU, no W&B key, and a folder of the test's own for runs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.chdir(tmp_path)


def prepared(*overrides: str, environ: dict[str, str] | None = None) -> Prepared:
    return prepare(compose_run(*SMALL, *overrides), environ or {})


def errors(*overrides: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        prepared(*overrides, environ=environ)
    return caught.value.errors


# --- what works


@pytest.mark.parametrize("choice", [f"optimizer={name}" for name in GROUPS["optimizer"]])
def test_every_optimizer_is_built_over_the_parameters_of_the_model(choice: str):
    run = prepared(choice, "model=mlp", "model.hidden=[8]")
    held = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, run.model.parameters()))
    assert {group["decays"] for group in run.optimizer.param_groups} == {True, False}
    assert not run.optimizer.state


@pytest.mark.parametrize("choice", ["optimizer=lamb", "optimizer=lars"])
def test_kernels_are_compiled_for_the_optimizer_or_what_is_missing_is_an_error_of_the_config(choice: str, monkeypatch):
    if has_compiler():
        run = prepared(choice, "+optimizer.compile=true")
        assert all(group["compile"] for group in run.optimizer.param_groups)
        assert not run.config.precision.compile  # torch.compile of the model is another thing
    monkeypatch.setenv("CC", "no-such-compiler")
    kernels.cache_clear()
    (error,) = errors(choice, "+optimizer.compile=true")
    assert error.startswith(f"optimizer (largebatch.optim.{choice[-4:].upper()}): compile=True: CC=no-such-compiler")
    assert "Install gcc or clang, or set compile=False." in error


@pytest.mark.bad_input("compilation without a compiler")
@pytest.mark.parametrize("is_there", [True, False])
def test_kernels_for_a_gpu_need_triton(is_there: bool, monkeypatch):
    monkeypatch.setattr(Device, "own", lambda: V100)
    monkeypatch.setattr(preconditions, "has_triton", lambda: is_there)
    chosen = ("optimizer=lamb", "+optimizer.compile=true")
    if is_there:
        assert prepared(*chosen).config.optimizer["compile"] is True
        return
    text = "optimizer.compile=true: its kernels for a GPU need Triton, which is missing. Run pip install triton."
    assert errors(*chosen) == [text]


@pytest.mark.parametrize("choice", [f"schedule={name}" for name in GROUPS["schedule"] if name != "own"])
def test_every_schedule_starts_at_the_base_rate_and_peaks_after_the_warmup(choice: str):
    run = prepared(choice, "batch.total=128", "length=30ep")
    # The rule is linear from 0.05 at 32; the set has 512 samples.
    assert run.numbers.lr_at(0) == pytest.approx(0.05, rel=1e-12)
    assert run.numbers.lr_at(512) == pytest.approx(0.2, rel=1e-12)
    assert run.numbers.lr_at(512 // 2) == pytest.approx(0.125, rel=1e-12)


def test_a_constant_warmup_trains_at_the_base_rate_and_the_plan_says_so():
    run = prepared("batch.total=128", "schedule=constant", "schedule.warmup_kind=constant")
    rates = [run.numbers.lr_at(samples) for samples in (0, 128, 511, 512, 2000)]
    assert rates == pytest.approx([0.05, 0.05, 0.05, 0.2, 0.2], rel=1e-12)
    assert ("warmup", "512 samples", "constant at 0.05") in plan_rows(run.numbers, run.optimizer)
    record = plan_record(run)
    assert (record["warmup_kind"], record["warmup_start_lr"]) == ("constant", pytest.approx(0.05))


def test_goyals_run_has_goyals_rates():
    run = prepared(
        "schedule=step",
        "batch.total=256",
        "length=90ep",
        "schedule.warmup=5ep",
        "schedule.milestones=[30ep,60ep,80ep]",
        "scaling.base_lr=0.1",
        "scaling.base_batch_size=8",
    )
    rates = [run.numbers.lr_at(int(epoch * 512)) for epoch in (0, 5, 29.9, 30, 60, 80)]
    assert rates == pytest.approx([0.1, 3.2, 3.2, 0.32, 0.032, 0.0032], rel=1e-12)
    assert run.numbers.num_steps == 180


def test_without_scaling_up_only_a_warmup_that_was_asked_for_is_there_and_it_starts_from_zero():
    run = prepared("scaling=none", "schedule=constant", "schedule.warmup=null")
    assert [run.numbers.lr_at(samples) for samples in (0, 100, 512, 2000)] == [0.05] * 4
    asked = prepared("scaling=none", "schedule=constant")
    assert [asked.numbers.lr_at(samples) for samples in (0, 128, 512, 2000)] == [0, 0.0125, 0.05, 0.05]
    assert ("warmup", "512 samples", "from 0") in plan_rows(asked.numbers, asked.optimizer)


def test_the_plan_is_that_of_the_launchers_ranks():
    run = prepared("batch.total=101", "batch.max_micro=30", environ=TWO_RANKS)
    assert run.numbers.plan.world_size == 2
    assert run.numbers.plan.micro_batch_sizes == (26, 25, 25, 25)
    pinned = prepared("batch.total=100", "batch.micro=30", environ=TWO_RANKS)
    assert pinned.numbers.plan.micro_batch_sizes == (30, 30, 30, 10)


def test_lengths_and_intervals_are_samples_and_whole_steps():
    run = prepared("batch.total=100", "observers.evaluation.every=0.5ep", "observers.checkpoint.every=7steps")
    numbers = run.numbers
    assert (numbers.schedule.total_samples, numbers.num_steps) == (2048, 20)
    assert (numbers.evaluate_every, numbers.checkpoint_every) == (256, 700)
    assert {what: (value, why) for what, value, why in plan_rows(numbers, run.optimizer)}["steps"] == (
        "20",
        "2,048 samples // 100; the last 48 samples do not fill a batch",
    )


def test_the_whole_set_is_a_batch():
    assert prepared("batch=full").numbers.plan.global_batch_size == 512
    assert prepared("batch=full", "data.limit=100").numbers.plan.global_batch_size == 100


def test_the_record_of_the_plan_is_json_and_says_where_the_rate_comes_from():
    record = json.loads(json.dumps(plan_record(prepared("batch.total=128"))))
    rate = record["peak_lr"]
    assert eval(rate["formula"], {}, rate["inputs"]) == pytest.approx(rate["value"]) == pytest.approx(0.2)
    assert (record["global_batch_size"], record["num_steps"], record["warmup_start_lr"]) == (128, 16, 0.05)


def test_every_rank_draws_the_same_weights_whatever_was_drawn_before():
    def weights(*overrides: str) -> torch.Tensor:
        return prepared("model=mlp", "model.hidden=[4]", *overrides).model.head.weight

    torch.manual_seed(1)
    first = weights()
    torch.manual_seed(2)
    assert torch.equal(first, weights())
    assert not torch.equal(first, weights("seed=1"))


def test_the_trial_leaves_model_and_optimizer_as_new():
    run = prepared("model=convnet", "model.width=4")
    assert run.model.training
    assert all(parameter.grad is None for parameter in run.model.parameters())
    statistics = {name: value for name, value in run.model.named_buffers() if "running" in name or "tracked" in name}
    assert statistics, "the convnet has batch norms"
    for name, value in statistics.items():
        assert torch.equal(value, torch.ones_like(value) if "var" in name else torch.zeros_like(value)), name


def test_both_sides_of_the_gap_are_measured_without_label_smoothing():
    run = prepared("loss.label_smoothing=0.1")
    assert run.loss == CrossEntropy(label_smoothing=0.1)
    assert run.measured_loss == CrossEntropy()


def test_a_contrastive_run_is_tried_on_two_samples_and_left_as_new():
    run = prepared("data=paired_views", "model=two_views", "loss=info_nce")
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert run.measured_loss == run.loss


def test_a_run_may_continue_in_its_own_folder(tmp_path: Path):
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    assert prepared(f"run.dir={tmp_path}/old", "resume=auto").config.resume == "auto"
    assert prepared(f"run.dir={tmp_path}/new/deep").config.run.dir == f"{tmp_path}/new/deep"
    assert not (tmp_path / "new").exists(), "a check writes nothing"


def test_frozen_parameters_need_no_gradient():
    assert prepared(f"model._target_={HERE}.WithUnused", "+model.frozen=true").numbers.num_steps == 64


# --- what does not: overrides, variables of a launcher if there are any, and of each error the start and the remedy

Row = tuple[Any, ...]

INSTEAD = {
    "batch.max_micro=1": "a larger batch.max_micro",
    "batch.micro=2": "batch.micro=null",
    "batch.on_out_of_memory=lower": "batch.on_out_of_memory=stop",
    "batch.reduction=ordered": "batch.reduction=all_reduce",
    "batch_norm=exact": "batch_norm=per_micro_batch",
    "loss._target_=largebatch.losses.InfoNCE": "a loss that is a sum over samples",
    "observers.communication.every=5": "observers.communication.every=null",
    "observers.noise_scale.every=5": "observers.noise_scale.every=null",
    "observers.recompute.every=5": "observers.recompute.every=null",
    "observers.sharpness.every=1ep": "observers.sharpness.every=null",
    "precision.activation_checkpointing": "precision.activation_checkpointing=false",
    "precision.compile=true": "precision.compile=false",
    "precision.compute=fp64": "precision=fp32",
    "guard.policy=skip": "guard.policy=log",
    "precision.gradient_compression=fp16": "precision.gradient_compression=none",
    "precision.gradient_compression=powersgd": "precision.gradient_compression=none",
}


def excluded(one: str, other: str, reason: str = "") -> dict[str, str]:
    """The error of two settings of which one needs what the other takes away: it names the way out of each."""
    return {f"{one}: does not go with {other}: {reason}": f". Use {INSTEAD[one]} or {INSTEAD[other]}."}


BATCH: dict[str, Row] = {
    "larger than the set": (
        ["batch.total=1000"],
        {"batch.total=1000: the training set has 512 samples": "Use at most that many, or batch.total=full."},
    ),
    "larger than the part in use": (
        ["data.limit=31"],
        {"batch.total=32: the training set has 31 samples": "batch.total=full"},
    ),
    "smaller than the ranks": (
        ["batch.total=4"],
        EIGHT_RANKS,
        {"batch: A global batch of 4 cannot be shared by 8 ranks": "at most 4 ranks or a batch of at least 8."},
    ),
    "order without pinned micro-batches": (
        ["batch.reduction=ordered"],
        {"batch.reduction=ordered: sums gradients in the order of the micro-batches": "with batch.micro=SIZE."},
    ),
    "exact batch norm and what cannot go with it": (
        ["batch_norm=exact", "batch.micro=4", "batch.reduction=ordered", "precision.activation_checkpointing=head"],
        {
            "batch_norm=exact: the model has no batch norm": "Use batch_norm=per_micro_batch.",
            **excluded("batch_norm=exact", "batch.reduction=ordered"),
            **excluded("batch_norm=exact", "precision.activation_checkpointing"),
        },
    ),
    "a noise scale without noise": (
        ["observers.noise_scale.every=5", "batch.total=3"],
        {
            "observers.noise_scale.every=5: compares gradients of parts of a batch": "Raise batch.total, or use more",
        },
    ),
    "groups of a noise scale that is not measured": (
        ["observers.noise_scale.groups={all:[weight]}"],
        {"observers.noise_scale.groups: has no effect without measurements": "Set observers.noise_scale.every=10."},
    ),
    "a group without parameters": (
        ["observers.noise_scale.every=5", "observers.noise_scale.groups={tail:[tail]}"],
        {"observers.noise_scale.groups: tail: 'tail' fits no trainable parameter": "Remove it or correct it"},
    ),
    "a parameter in two groups": (
        ["observers.noise_scale.every=5", "observers.noise_scale.groups={one:[weight],other:[head]}"],
        {"observers.noise_scale.groups: other: head.weight is in one, too": "make the entries narrower"},
    ),
    "compression of gradients that are not sent": (
        ["precision.gradient_compression=bf16"],
        {"precision.gradient_compression=bf16: has no effect on one process": "Leave it none, or use more"},
    ),
    "options of a compression that is not chosen": (
        ["precision.powersgd.matrix_approximation_rank=2"],
        TWO_RANKS,
        {
            "precision.powersgd: has no effect with precision.gradient_compression=none": "Leave it as it is, or set "
            "precision.gradient_compression=powersgd."
        },
    ),
    "thin matrices and what takes the mean of ranks, or bad gradients": (
        ["precision.gradient_compression=powersgd", "observers.noise_scale.every=5", "guard.policy=skip"],
        TWO_RANKS,
        {
            **excluded("observers.noise_scale.every=5", "precision.gradient_compression=powersgd"),
            **excluded("guard.policy=skip", "precision.gradient_compression=powersgd"),
        },
    ),
    "compression and audits": (
        ["precision=fp64", "precision.gradient_compression=fp16", "batch.reduction=ordered", "batch.micro=2"],
        TWO_RANKS,
        {
            **excluded("precision.gradient_compression=fp16", "batch.reduction=ordered"),
            **excluded("precision.gradient_compression=fp16", "precision.compute=fp64"),
        },
    ),
    "a gradient that is not computed twice": (
        ["observers.recompute.every=5", "batch.reduction=ordered", "batch.micro=8"],
        excluded("observers.recompute.every=5", "batch.reduction=ordered"),
    ),
    "a recomputation of a step that may be taken again": (
        ["observers.recompute.every=5", "batch.on_out_of_memory=lower"],
        TWO_RANKS,
        excluded("observers.recompute.every=5", "batch.on_out_of_memory=lower"),
    ),
    "batch norms that meet before a gradient is computed twice": (
        ["observers.recompute.every=5", "batch_norm=exact", "model=convnet"],
        excluded("observers.recompute.every=5", "batch_norm=exact"),
    ),
    "communication of one process": (
        ["observers.communication.every=5"],
        {"observers.communication.every=5: one process sends nothing": "Start 2 or more with torchrun or accelerate"},
    ),
    "micro-batches that cannot be lowered": (
        ["batch.on_out_of_memory=lower", "batch.micro=2", "batch.max_micro=1", "batch.reduction=ordered"],
        TWO_RANKS,
        {
            **excluded("batch.on_out_of_memory=lower", "batch.reduction=ordered"),
            **excluded("batch.on_out_of_memory=lower", "batch.micro=2"),
            **excluded("batch.on_out_of_memory=lower", "batch.max_micro=1"),
            "batch.micro=2: is more than batch.max_micro=1": "give batch.max_micro=2.",
        },
    ),
    "micro-batches that cannot be lowered for other reasons": (
        ["batch.on_out_of_memory=lower", "batch_norm=exact", "model=convnet", "precision.gradient_compression=fp16"],
        TWO_RANKS,
        {
            **excluded("precision.gradient_compression=fp16", "batch_norm=exact"),
            **excluded("batch.on_out_of_memory=lower", "batch_norm=exact"),
            **excluded("batch.on_out_of_memory=lower", "precision.gradient_compression=fp16"),
        },
    ),
    "communication of a step that may be taken again": (
        ["observers.communication.every=5", "batch.on_out_of_memory=lower"],
        TWO_RANKS,
        excluded("observers.communication.every=5", "batch.on_out_of_memory=lower", "it sends"),
    ),
    "communication in an order": (
        ["observers.communication.every=5", "batch.reduction=ordered", "batch.micro=8"],
        TWO_RANKS,
        excluded("observers.communication.every=5", "batch.reduction=ordered", "it sends"),
    ),
    "a noise scale of micro-batches that meet": (
        ["observers.noise_scale.every=5", "batch_norm=exact", "model=convnet"],
        excluded("observers.noise_scale.every=5", "batch_norm=exact", "the ranks meet in every batch norm"),
    ),
    "communication in batch norms": (
        ["observers.communication.every=5", "batch_norm=exact", "model=convnet"],
        TWO_RANKS,
        excluded("observers.communication.every=5", "batch_norm=exact", "the ranks"),
    ),
    "a sharpness that cannot be measured": (
        [
            "observers.sharpness.every=1ep",
            "observers.sharpness.samples=2000",
            "observers.sharpness.m=3000",
            "precision.compile=true",
        ],
        {
            **excluded("observers.sharpness.every=1ep", "precision.compile=true", "torch.compile has"),
            "observers.sharpness.samples=2000: the training set has": "Use at most that.",
            "observers.sharpness.m=3000: 2000 samples make no group": "Use m at most 2000.",
        },
    ),
    "pinned micro-batches above the limit": (
        ["batch.micro=8", "batch.max_micro=4"],
        {"batch.micro=8: is more than batch.max_micro=4, the most samples of one forward pass": "batch.max_micro=8"},
    ),
    "too few pinned micro-batches": (
        ["batch.total=100", "batch.micro=64"],
        EIGHT_RANKS,
        {"batch: A global batch of 100 in micro-batches of 64 makes 2": "or micro-batches of at most 14."},
    ),
}

SCHEDULE: dict[str, Row] = {
    "warmup as long as the run": (
        ["schedule.warmup=4ep"],
        {"schedule: A warmup of 2048 samples does not fit into a run of 2048": "Shorten the warmup or lengthen"},
    ),
    "warmup from a rate above the peak": (
        ["schedule.warmup_from=base_lr", "batch.total=16"],
        {
            "schedule.warmup_from=base_lr: the peak rate, 0.025, is not above scaling.base_lr=0.05, so": "warmup=0ep",
        },
    ),
    "constant warmup without a rise": (
        ["schedule.warmup_kind=constant", "scaling=none"],
        {"schedule.warmup_kind=constant: holds scaling.base_lr=0.05 before the peak rate": "gradual"},
    ),
    "constant warmup at no rate": (
        ["schedule.warmup_kind=constant", "schedule.warmup_from=zero"],
        {"schedule: warmup_kind=constant with warmup_start_factor=0: the first 512": "Start from the base rate."},
    ),
    "constant warmup of nothing": (
        ["schedule.warmup_kind=constant", "schedule.warmup=0ep"],
        {"schedule: warmup_kind=constant has no effect with a warmup of 0 samples": "Use gradual, or set a warmup."},
    ),
    "length below a batch": (
        ["length=31samples", "schedule.warmup=0ep"],
        {"length=31samples: 31 samples are less than one batch of 32": "Train longer."},
    ),
    "no length": (
        ["length=0steps", "schedule.warmup=0ep"],
        {"length=0steps: 0 samples are less than one batch of 32": "Train longer."},
    ),
    "milestones fall": (
        ["schedule=step", "schedule.milestones=[2ep,1ep]"],
        {"schedule: step_samples=(1024, 512)": "milestones must be increasing."},
    ),
    "step without milestones": (
        ["schedule=step", "schedule.milestones=[]"],
        {"schedule: decay=step with 0 milestones": "needs at least one."},
    ),
    "milestones without step": (
        ["+schedule.milestones=[1ep]"],
        {"schedule.milestones=['1ep']: has no effect with schedule.decay=cosine": "it belongs to step."},
    ),
    "settings of another decay": (
        ["schedule=constant", "+schedule.end_factor=0.5", "+schedule.power=3"],
        {
            "schedule.end_factor=0.5: has no effect with schedule.decay=constant": "linear, cosine, quarter_cosine",
            "schedule.power=3.0: has no effect with schedule.decay=constant": "it belongs to polynomial. Remove it",
        },
    ),
    "milestone inside the warmup": (
        ["schedule=step", "schedule.milestones=[0.5ep,2ep]"],
        {"schedule: A milestone at 256 samples in a run of 2048 with a warmup of 512": "Move or remove it."},
    ),
    "milestone after the run": (
        ["schedule=step", "schedule.milestones=[2ep,9ep]"],
        {"schedule: A milestone at 4608 samples in a run of 2048": "Move or remove it."},
    ),
    "interval of nothing": (
        ["observers.evaluation.every=0ep", "observers.checkpoint.every=0.0001ep"],
        {
            "observers.evaluation.every=0ep: an interval is above 0": "Use null for only at the end.",
            "observers.checkpoint.every=0.0001ep: an interval is above 0": "Use null",
        },
    ),
    "profile longer than the run": (
        ["observers.profile.steps=60"],
        {"observers.profile.steps=60: the run has 64 steps, and 5 warm up": "Train longer or record fewer."},
    ),
}

OPTIMIZER: dict[str, Row] = {
    "unknown argument": (
        ["+optimizer.lrr=1"],
        {"optimizer.lrr=1: torch.optim.SGD has no such argument": "It takes momentum, dampening"},
    ),
    "typo of an argument": (
        ["+optimizer.dampning=0.1"],
        {"optimizer.dampning=0.1: torch.optim.SGD has no such argument": "Did you mean 'dampening'?"},
    ),
    "an option that is no number": (
        ["optimizer.momentum=nan"],
        {"optimizer.momentum=nan: every weight would be NaN": "Give a number."},
    ),
    "rate beside the scaling": (
        ["+optimizer.lr=0.1"],
        {"optimizer.lr=0.1: the rate is derived from scaling.base_lr": "Set these."},
    ),
    "parameters from the config": (
        ["+optimizer.params=[1]"],
        {"optimizer.params=[1]: largebatch sets this argument itself": "Remove it."},
    ),
    "momentum of AdamW": (
        ["optimizer=adamw", "+optimizer.momentum=0.9"],
        {"optimizer.momentum=0.9: torch.optim.AdamW has no such argument": "It takes betas, eps"},
    ),
    "beta above one": (
        ["optimizer=adamw", "optimizer.betas=[0.9,1.5]"],
        {"optimizer (torch.optim.AdamW): ": "1.5"},
    ),
    "negative decay": (
        ["optimizer.weight_decay=-1"],
        {"optimizer: weight_decay=-1": "a finite number >= 0"},
    ),
    "decay that is no number": (
        ["optimizer.weight_decay=null"],
        {"optimizer.weight_decay=None: ": "must be a number."},
    ),
    "decay that the optimizer does not know": (
        ["optimizer._target_=torch.optim.Rprop", "~optimizer.momentum", "~optimizer.nesterov"],
        {"optimizer.weight_decay=0.0005: torch.optim.Rprop has no such argument": "It takes etas"},
    ),
    "exclusion that fits nothing": (
        ["parameters.exclude_from_decay=[norm,xyz]"],
        {"optimizer: exclude_from_decay: 'xyz' fits no trainable parameter": "the names are head.weight, head.bias"},
    ),
    "a text for a switch": (
        ["optimizer.nesterov=no"],
        {"optimizer.nesterov=no: torch.optim.SGD": "Write false"},
    ),
    "something else": (
        ["optimizer={_target_:torch.nn.Linear}"],
        {
            f"optimizer.{option}: torch.nn.Linear has no such argument": "in_features"
            for option in ("momentum=0.9", "nesterov=False", "weight_decay=0.0005")
        },
    ),
}

MODEL: dict[str, Row] = {
    "target that does not import": (
        ["model._target_=nowhere.Model"],
        {
            "model._target_=nowhere.Model: cannot be imported (ModuleNotFoundError: No module named 'nowhere')": (
                "your own modules must be on PYTHONPATH"
            )
        },
    ),
    "no module": (
        ["model._target_=builtins.dict"],
        {"model._target_=builtins.dict: made a dict": "not a Module."},
    ),
    "error in the constructor": (
        ["model=mlp", "model.hidden=[]"],
        {"model (largebatch.models.MLP): hidden=[]": "Use Linear for a model without one."},
    ),
    "wider than any memory": (
        ["model=mlp", "model.hidden=[35184372088832]"],
        {"model: its weights take ": "GiB of memory. Ask for less, or use a machine with more."},
    ),
    "inputs of another width": (
        ["model.in_features=3"],
        {"model and data: Linear got inputs of shape [32, 1, 8, 8], that is 64 features": "set in_features=64"},
    ),
    "fewer outputs than classes": (
        ["model.num_outputs=1"],
        {"model and data: sample 60: the label 2 is none of the 1 classes, 0 to 0, that ": "(data.num_classes"},
    ),
    "fails in its own way": (
        [f"model._target_={HERE}.Stumbles"],
        {
            "model and data: a micro-batch of 32 samples (": (
                "failed in the forward pass in training mode with KeyError: 'pixel_values' (test_prepare.py:"
            )
        },
    ),
    "unused parameters": (
        [f"model._target_={HERE}.WithUnused"],
        {"model and data: 2 parameters get no gradient, e.g. spare.weight, spare.bias": "requires_grad=False"},
    ),
    "nothing to train": (
        ["model._target_=torch.nn.Flatten", "~model.in_features", "~model.num_outputs"],
        {"optimizer: Flatten has no trainable parameters": "Set requires_grad=True"},
    ),
    "loss of torch": (
        ["loss=module", "loss._target_=torch.nn.CosineEmbeddingLoss"],
        {"model and data: a micro-batch of 32 samples (": "missing 1 required positional argument: 'target'"},
    ),
    "sum of torch": (
        ["loss=module", "loss._target_=torch.nn.CrossEntropyLoss", "+loss.reduction=sum"],
        {"loss._target_=torch.nn.CrossEntropyLoss: CrossEntropyLoss has reduction='sum'": "Use reduction=mean"},
    ),
    "module without a reduction": (
        ["loss=module", "loss._target_=torch.nn.Identity"],
        {"loss._target_=torch.nn.Identity: a Identity has no unit": "no reduction. Choose a class"},
    ),
    "weights of another number of classes": (
        ["loss.weight=[1,2]"],
        {"model and data: loss.weight has 2 numbers, the model 10 outputs": "give one for each"},
    ),
    "smoothing above one": (
        ["loss.label_smoothing=2"],
        {"loss (largebatch.losses.CrossEntropy): label_smoothing=2": "Use 0 for none."},
    ),
}

COUPLED = ["data=paired_views", "model=two_views", "loss=info_nce"]
LOSS: dict[str, Row] = {
    "one sample per step": (
        [*COUPLED, "batch.total=1"],
        {"batch.total=1: largebatch.losses.InfoNCE compares the samples of a batch": "Use at least 2."},
    ),
    "one sample per evaluation batch": (
        [*COUPLED, "observers.evaluation.micro=1"],
        {"observers.evaluation.micro=1: largebatch.losses.InfoNCE compares": "Use at least 2."},
    ),
    "sides of the gap in batches of different sizes": (
        [*COUPLED, "data.limit=100"],
        {"data.validation: has 128 samples and the training set 100": "raise data.limit"},
    ),
    "samples of other ranks in a gradient that is computed twice": (
        [*COUPLED, "observers.recompute.every=5"],
        excluded("observers.recompute.every=5", "loss._target_=largebatch.losses.InfoNCE", "it"),
    ),
    "one view": (
        ["loss=info_nce"],
        {"model and data: InfoNCE got outputs [32, 10] and 32 targets": "Use inputs [n, 2, ...]"},
    ),
    "one view for a model of two": (
        ["loss=info_nce", "model=two_views"],
        {"model and data: TwoViews got inputs of shape [32, 1, 8, 8]": "data=paired_views"},
    ),
    "an encoder of another size": (
        [*COUPLED, "model.encoder.in_features=63"],
        {"model and data: MLP got inputs of shape [64, 64]": "set in_features=64"},
    ),
    "no temperature": (
        [*COUPLED, "loss.temperature=0"],
        {"loss (largebatch.losses.InfoNCE): temperature=0": "0.05 to 0.5"},
    ),
}

DATA: dict[str, Row] = {
    "missing folder": (
        ["data=cifar10", "model=convnet", "data.path=/nowhere"],
        {
            "data.train (largebatch.data.parquet_images): /nowhere: no such folder": "It must contain",
            "data.validation (largebatch.data.parquet_images): /nowhere: no such folder": "It must contain",
        },
    ),
    "unknown split": (
        ["data.train.split=validtion"],
        {"data.train.split=validtion: largebatch.data.random_classification takes one of": "'validation'?"},
    ),
    "no length": (
        [
            "data.validation._target_=builtins.object",
            *(f"~data.validation.{key}" for key in ("num_samples", "num_classes", "shape", "split")),
        ],
        {"data.validation: object has no length or no items": "a map-style data set is needed."},
    ),
    "empty": (
        [
            f"data.train._target_={HERE}.Items",
            *(f"~data.train.{key}" for key in ("num_samples", "num_classes", "shape", "split")),
            "+data.train.count=0",
        ],
        {"data.train: the data set is empty": "Check its path and its split."},
    ),
    "nothing to evaluate on": (
        [
            f"data.validation._target_={HERE}.Items",
            *(f"~data.validation.{key}" for key in ("num_samples", "num_classes", "shape", "split")),
            "+data.validation.count=0",
        ],
        {"data.validation: the data set is empty": "Check its path and its split."},
    ),
    # More bytes than an address has room for: the system refuses them in any case, and nothing is filled.
    "more samples than any memory holds": (
        ["data.train.num_samples=35184372088832"],
        {
            "data.train (largebatch.data.random_classification): 35,184,372,088,832 times 64 random numbers take "
            "16,777,216.0 GiB, and this machine has ": "GiB of memory. Ask for less, or use a machine with more."
        },
    ),
    "limit above the set": (
        ["data.limit=513"],
        {"data.train: 513 samples of a set of 512": "choose from 1 to 512"},
    ),
    "workers without work": (
        ["data.num_workers=3"],
        {"model and data: num_workers=3 has no effect": "Set num_workers=0."},
    ),
    "a time limit without workers": (
        ["data.timeout_s=5"],
        {"model and data: timeout_s=5 has no effect without workers": "or timeout_s=0."},
    ),
    "too many workers": (
        ["data.num_workers=10000"],
        {"data.num_workers=10000: starts so many workers per rank": "Use at most "},
    ),
    "augmented vectors": (
        ["data.train.shape=[64]", "data.augment.flip=true"],
        {"model and data: Augmentation takes images [n, C, H, W]": "Disable crop_padding, flip and cutout"},
    ),
    "mixed views": (
        ["loss=info_nce", "data.augment.cutmix=1"],
        {"loss: InfoNCE compares the samples of a batch": "data.augment.cutmix to 0."},
    ),
    "boxes of vectors": (
        ["data.train.shape=[64]", "data.validation.shape=[64]", "data.augment.cutmix=1"],
        {"model and data: data.augment.cutmix cuts boxes out of images": "mixup takes inputs of any shape."},
    ),
    "a switch between one way": (
        ["data.augment.mixup=0.2", "data.augment.mix_switch=0.3"],
        {"data.augment: mix_switch=0.3: has no effect": "Leave it at 0.5."},
    ),
    "a probability of nothing": (
        ["data.augment.mix_probability=0.3"],
        {"data.augment: mix_probability=0.3: has no effect": "data.augment.mixup=0.2."},
    ),
    "a transform with draws of its own": (
        ["data.augment.transform={_target_:tests.unit.data.own_transforms.OwnGenerator}"],
        {"data.augment.transform: OwnGenerator gave two images of sample 0": "numpy (np.random) or Python (random)."},
    ),
    "a transform that is no callable": (
        ["data.augment.transform={_target_:builtins.dict}"],
        {"data.augment: transform: a dict cannot be called": "with _partial_: true."},
    ),
    "a form for no transform": (
        ["data.augment.transform_takes=pil"],
        {"data.augment: transform_takes=pil: has no effect": "Leave it at tensor."},
    ),
    "crops of numbers": (
        ["data.augment.random_resized_crop={}"],
        {"data.train: data.augment.random_resized_crop: ArrayDataset holds no images": "or set it to null."},
    ),
    "views that are mixed": (
        ["data.augment.views=2", "data.augment.mixup=0.2"],
        {"data.augment: views=2, mixing=Mixing(mixup=0.2": "several are not mixed."},
    ),
    "another set for the gap": (
        ["+data.train_plain={_target_:nowhere.Set}"],
        {"data.train_plain._target_=nowhere.Set: cannot be imported": "Check the dotted name"},
    ),
}

MACHINE: dict[str, Row] = {
    "fp16 on a CPU": (
        ["precision=fp16"],
        {"precision.compute=fp16: needs a GPU": "Use bf16 or fp32."},
    ),
    "tf32 on a CPU": (
        ["precision.tf32=true"],
        {"precision.tf32=true: has no effect without a GPU": "Use null."},
    ),
    "pattern that is none": (
        ["precision.activation_checkpointing='(a'"],
        {"precision.activation_checkpointing=(a: ": "", "model: ": "(a"},
    ),
    "W&B without a key": (
        ["logger=wandb"],
        {"logger.wandb.mode=online: there is no W&B key": "Run `wandb login`, set WANDB_API_KEY, or use offline."},
    ),
    "W&B's variable without a key": (
        ["logger.wandb.mode=auto"],
        {"WANDB_MODE": "online"},
        {"WANDB_MODE=online: there is no W&B key": "Run `wandb login`, set WANDB_API_KEY, or use offline."},
    ),
    "W&B's variable of no meaning": (
        ["logger.wandb.mode=auto"],
        {"WANDB_MODE": "of"},
        {"WANDB_MODE=of: use online, offline or disabled": "or unset it."},
    ),
    "launcher in part": (
        [],
        MEETING | {"WORLD_SIZE": "2"},
        {"WORLD_SIZE is set but RANK is not": "Start with torchrun or accelerate launch, or unset it."},
    ),
    "launcher that is not there": (
        ["launcher.num_processes=4"],
        {"launcher.num_processes=4, but 1 started": "torchrun --standalone --nproc-per-node 4 -m largebatch train"},
    ),
    "accelerate's own precision": (
        [],
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        {"ACCELERATE_MIXED_PRECISION=bf16 contradicts precision.compute=fp32": "leave accelerate's at `no`."},
    ),
    "accelerate's own accumulation": (
        [],
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4": "Set batch.total and batch.max_micro instead"},
    ),
    "resume without a folder": (
        ["resume=auto"],
        {"resume=auto: looks into run.dir, which is not set": "Give run.dir=FOLDER."},
    ),
    "resume from nowhere": (
        ["resume=nowhere/run"],
        {"resume=nowhere/run: there is no such folder": "Use auto, none, or the path of a run."},
    ),
    "file in place of a folder": (
        ["run.dir=/etc/passwd/run"],
        {"run folder: /etc/passwd cannot be written to": "Choose run.dir or run.root elsewhere."},
    ),
    "folder that no disk can hold": (
        [f"run.dir={'long' * 100}"],
        {"run folder: ": "File name too long"},
    ),
}

TABLES = {
    "batch": BATCH,
    "schedule": SCHEDULE,
    "optimizer": OPTIMIZER,
    "model": MODEL,
    "loss": LOSS,
    "data": DATA,
    "machine": MACHINE,
}


@pytest.mark.fault(52, "unused or frozen parameters", "named before step 1")
@pytest.mark.bad_input(
    "a batch that ranks and pinned micro-batches do not divide",
    "a batch smaller than the ranks",
    "a pinned micro-batch larger than a rank's share",
    "a batch larger than the training set",
    "milestones that do not rise",
    "a milestone after the end",
    "a length of 0 or less",
    "a warmup as long as the run",
    "an unknown argument of the optimizer",
    "a beta outside of [0, 1)",
    "a negative weight decay",
    "momentum of an optimizer that has none",
    "an exclusion that fits no parameter",
    "fp16 on a CPU",
    "unused parameters and a static graph",
    "WORLD_SIZE without RANK",
    "settings of accelerate against the config",
    "processes that nobody started",
    "a run folder that cannot be written, or holds a run",
    "no checkpoint to resume, or none that is valid",
    "checkpoints at no interval, or none to keep",
    "data that are missing, empty or damaged",
    "other classes than the model's outputs",
    "inputs of another shape than the model's",
    "an empty validation set, or an evaluation after the end",
    "too many loading processes, or too little shared memory",
    "a target that cannot be imported",
    "W&B online without a key",
    "a width or a number of samples that no memory holds",
    "a value of another type than the target takes, as `nesterov=no`, a text, which counts as true",
    "a pinned micro-batch above the most samples of a forward pass",
)
@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=f"{table}: {name}") for table, rows in TABLES.items() for name, row in rows.items()],
)
def test_bad_input_is_reported_with_its_key_and_a_remedy_and_nothing_else(row: Row):
    overrides, *environ, expected = row
    found = errors(*overrides, environ=environ[0] if environ else None)
    assert len(found) == len(expected), found
    for line, (start, remedy) in zip(found, expected.items(), strict=True):
        assert line.startswith(start)
        assert remedy in line


@pytest.mark.bad_input("a run folder that cannot be written, or holds a run")
def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path):
    (tmp_path / "metrics.jsonl").touch()
    (line,) = errors(f"run.dir={tmp_path}")
    assert line == f"run.dir={tmp_path}: already holds a run. Continue it with resume=auto, or choose another folder."


@pytest.mark.bad_input("a run folder that cannot be written, or holds a run")
def test_a_folder_without_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The tests may run as root, whom nothing is forbidden.
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    (line,) = errors(f"run.root={tmp_path}/runs")
    assert line == f"run folder: {tmp_path} cannot be written to. Choose run.dir or run.root elsewhere."


@pytest.mark.bad_input("a disk without room for a checkpoint")
@pytest.mark.parametrize(
    ("optimizer", "num_bytes", "told"),
    [
        ("sgd", 5200, "5,200: 2,600 of weights, 2,600 of the optimizer"),
        ("lars", 5200, "5,200: 2,600 of weights, 2,600 of the optimizer"),
        ("adamw", 7808, "7,808: 2,600 of weights, 5,208 of the optimizer"),  # two moments, and two numbers of steps
        ("lamb", 7808, "7,808: 2,600 of weights, 5,208 of the optimizer"),
    ],
)
def test_a_disk_without_room_for_weights_and_optimizer_is_told_before_the_run(
    optimizer: str, num_bytes: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage, chosen = shutil.disk_usage(tmp_path), (f"run.dir={tmp_path}/new/run", f"optimizer={optimizer}")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=num_bytes - 1))
    (line,) = errors(*chosen)
    assert line == (
        f"run folder: {tmp_path} has {num_bytes - 1:,} bytes left, and a checkpoint takes {told}. "
        "Make room, or choose run.dir or run.root elsewhere."
    )
    for total, free in ((usage.total, num_bytes), (0, 0)):  # some network file systems report a total of 0
        monkeypatch.setattr(
            "shutil.disk_usage", lambda path, now=(total, free): usage._replace(total=now[0], free=now[1])
        )
        assert prepared(*chosen).numbers.num_steps == 64


@pytest.mark.bad_input("a width or a number of samples that no memory holds")
def test_a_model_of_ones_own_is_made_once():
    Counted.count = 0
    assert isinstance(prepared(f"model._target_={HERE}.Counted").model, Counted)
    assert Counted.count == 1


@pytest.mark.bad_input("compilation without a compiler")
def test_a_compiler_is_needed_only_for_compilation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert prepared().numbers.num_steps == 64
    (line,) = errors("precision.compile=true")
    assert line == "precision.compile=true: torch.compile needs a C++ compiler here. Install g++."


@pytest.mark.bad_input("bf16 on a GPU without it", "more ranks than GPUs")
def test_a_gpu_without_bfloat16_or_for_fewer_ranks_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Device, "own", lambda: V100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert errors("precision=bf16", environ=TWO_RANKS) == [
        "precision.compute=bf16: V100 has no bfloat16. Use fp16 or fp32.",
        "LOCAL_RANK=1: this machine has 1 GPUs. Start one process per GPU.",
    ]
    assert prepared("precision=fp16", environ=TWO_RANKS | {"LOCAL_RANK": "0"}).config.precision.compute == "fp16"


def test_a_key_makes_online_logging_possible(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert prepared("logger=wandb").config.logger.wandb.mode == "online"


def test_every_part_reports_its_errors_in_one_go():
    found = errors(
        "batch.total=100000",
        "schedule.warmup=9ep",
        "data.validation.split=test",
        "model.in_features=0",
        "loss.label_smoothing=3",
        "precision=fp16",
        "logger.wandb.mode=online",
        "resume=nowhere",
        "launcher.num_processes=3",
        environ={"ACCELERATE_USE_FSDP": "true"},
    )
    starts = ["launcher.num_processes=3", "ACCELERATE_USE_FSDP", "precision.compute=fp16", "logger.wandb.mode=online"]
    starts += ["resume=nowhere", "data.validation.split=test", "loss (", "model (", "batch.total=100000"]
    starts += ["length=4ep: 2048 samples are less than one batch", "schedule: A warmup"]
    assert len(found) == len(starts)
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=True))


def test_every_rank_gets_the_same_report():
    wrong = ("batch.total=1", "precision=fp16", "+optimizer.lrr=1")
    reports: list[Any] = [
        errors(*wrong, environ=TWO_RANKS | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)
    ]
    assert reports[0] == reports[1]
    assert len(reports[0]) == 3


def test_a_loss_of_torch_is_taken_with_its_arguments_and_measured_without_smoothing():
    weight = [0.5, 2.0, *[1.0] * 8]
    given = ("loss=module", "loss._target_=torch.nn.CrossEntropyLoss")
    found = prepared(*given, f"+loss.weight={weight}", "+loss.label_smoothing=0.1", "model.num_outputs=10")
    outputs, targets = torch.randn(6, 10, dtype=torch.float64), torch.tensor([0, 1, -100, 1, 9, 0])
    for loss, smoothing in ((found.loss, 0.1), (found.measured_loss, 0.0)):
        own = torch.nn.CrossEntropyLoss(torch.tensor(weight).double(), label_smoothing=smoothing)(outputs, targets)
        ours = loss.loss_per_sample(outputs, targets).sum() / loss.units_per_sample(targets).sum()
        assert ours.item() == pytest.approx(own.item(), rel=1e-12)


@pytest.mark.bad_input("other classes than the model's outputs")
def test_a_label_beyond_the_outputs_is_found_wherever_it_is():
    keys = ("num_samples", "num_classes", "shape", "split")
    target = [f"data.train._target_={HERE}.labels_that_grow", *(f"~data.train.{key}" for key in keys)]
    (line,) = errors(*target, "model.num_outputs=5")
    assert line.startswith("model and data: the labels lie from 0 to 9, and the model's outputs cannot be scored")
    assert prepared(*target, "model.num_outputs=10").numbers.num_samples == 64


@pytest.mark.bad_input("inputs of another shape than the model's")
def test_an_evaluated_set_that_does_not_fit_the_model_is_found():
    (line,) = errors("data.validation.shape=[1,4,4]")
    assert line.startswith("model and data.validation: Linear got inputs of shape [2, 1, 4, 4]")
    keys = ("num_samples", "num_classes", "shape", "split")
    target = [f"data.validation._target_={HERE}.labels_that_grow", *(f"~data.validation.{key}" for key in keys)]
    (line,) = errors(*target, "model.num_outputs=5", "data.train.num_classes=5")
    assert line.startswith("model and data.validation: the labels lie from 0 to 9")


@pytest.mark.bad_input("a vocabulary or a context beyond the model's")
def test_text_with_more_tokens_or_a_longer_context_than_the_model_has_is_found(tmp_path: Path):
    (tmp_path / "text.txt").write_text("ab" * 900 + "abcdefgh" * 25)  # the last tenth, for validation, has all 8
    text = ["data=text", "model=gpt", "data.path=text.txt", "data.vocab_size=8", "data.context_length=4"]
    text += ["loss=next_token", "model.num_layers=1", "model.num_heads=1", "model.width=4", "batch.total=16"]
    assert len(prepared(*text).train) == 449
    (line,) = errors(*text, "model.vocab_size=7")
    assert line.startswith("model and data: the labels lie from 0 to 7, and the model's outputs cannot be scored")
    assert "(data.num_classes, data.vocab_size)" in line
    (line,) = errors(*text, "model.context_length=3")
    assert "4 tokens, context_length=3" in line


def test_the_plain_training_set_is_the_same_part_of_the_same_set():
    plain = "+data.train_plain={_target_:" + HERE + ".Items,count:512}"
    assert len(prepared(plain, "data.limit=100").train_plain) == 100, "the gap compares what was trained on"
    (line,) = errors("+data.train_plain={_target_:" + HERE + ".Items,count:511}")
    assert line.startswith("data.train_plain: has 511 samples and data.train 512")


def test_tensorboard_is_asked_for_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch):
    assert prepared("logger=tensorboard").config.logger.tensorboard
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (line,) = errors("logger=tensorboard")
    assert line.startswith("logger.tensorboard=true: the package tensorboard is missing.")


RAMP = ("batch.ramp.milestones=[1ep,1200samples]", "batch.ramp.totals=[100,33]")


def test_the_scaled_rate_follows_the_batch_of_a_ramp():
    run = prepared(*RAMP, "batch.total=64", "schedule=constant", "schedule.warmup=0ep")
    numbers = run.numbers
    sizes = {0: 64, 511: 64, 512: 100, 1199: 100, 1200: 33, 2047: 33}
    assert {samples: numbers.ramp.at(samples).global_batch_size for samples in sizes} == sizes
    for samples, size in sizes.items():
        assert numbers.lr_at(samples) == pytest.approx(0.05 * size / 32, rel=1e-12)
    # 8 steps of 64, 7 of 100 up to 1212, 25 of 33 up to 2037 of 2048.
    assert (numbers.num_steps, numbers.num_consumed) == (40, 2037)
    rows = {what: (value, why) for what, value, why in plan_rows(numbers, run.optimizer)}
    assert rows["from 512 samples"][0] == "100 samples"
    assert rows["from 512 samples"][1].startswith("7 steps, each 1 micro-batch; peak LR 0.15625, linear: base_lr")
    assert rows["steps"] == ("40", "2,048 samples; the last 11 samples do not fill a batch")
    ramp = json.loads(json.dumps(plan_record(run)))["ramp"]
    assert [(stage["from_samples"], stage["global_batch_size"], stage["num_steps"]) for stage in ramp] == [
        (512, 100, 7), (1212, 33, 25),
    ]  # fmt: skip


def test_warmup_and_decay_stay_functions_of_samples_under_a_ramp():
    with_ramp, without = (
        prepared(*ramp, "scaling=none", "schedule=cosine", "schedule.warmup_from=zero").numbers for ramp in (RAMP, ())
    )
    for samples in range(0, 2048, 31):
        assert with_ramp.lr_at(samples) == without.lr_at(samples)


def test_the_batch_grows_in_place_of_a_decay_and_the_rate_falls_only_beyond_the_largest_batch():
    steps = ("schedule=step", "schedule.milestones=[2ep,3ep]", "schedule.gamma=0.5", "batch.total=32")
    decays = prepared(*steps).numbers
    run = prepared(*steps, "batch.ramp.in_place_of_decay=true", "batch.ramp.max_total=100")
    grows = run.numbers
    assert [plan.global_batch_size for plan in grows.ramp.plans] == [32, 64, 100]
    assert [grows.lr_at(samples) for samples in (600, 1100)] == [decays.lr_at(600)] * 2
    for samples in (100, 600, 1100, 1600):
        noise, theirs = (one.lr_at(samples) / one.ramp.at(samples).global_batch_size for one in (grows, decays))
        assert noise == pytest.approx(theirs, rel=1e-12)
    assert {what: value for what, value, _ in plan_rows(grows, run.optimizer)}["decay"] == "by the batch"


def test_under_the_square_root_rule_the_batch_grows_by_the_square_and_the_rest_of_the_rate_follows_the_root():
    steps = (
        "optimizer=adamw",
        "schedule=step",
        "schedule.milestones=[2ep,3ep]",
        "schedule.gamma=0.5",
        "batch.total=16",
    )
    decays = prepared(*steps).numbers
    grows = prepared(*steps, "batch.ramp.in_place_of_decay=true", "batch.ramp.max_total=100").numbers
    assert [plan.global_batch_size for plan in grows.ramp.plans] == [16, 64, 100]  # 256 by the rule
    for samples in (100, 600, 1100, 1600):
        kept, theirs = (one.lr_at(samples) / one.ramp.at(samples).global_batch_size ** 0.5 for one in (grows, decays))
        assert kept == pytest.approx(theirs, rel=1e-12)
    assert "sqrt(global_batch_size / first_batch_size)" in grows.peak_lrs[2].explanation


@pytest.mark.bad_input("milestones that do not rise", "a milestone after the end")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["batch.ramp.milestones=[1ep]"], "batch.ramp: 1 milestones and 0 totals"),
        (["batch.ramp.milestones=[2ep,1ep]", "batch.ramp.totals=[64,96]"], "must increase from one to the next"),
        (["batch.ramp.milestones=[9ep]", "batch.ramp.totals=[64]"], "9ep is not inside the run of 2048 samples"),
        (["batch.ramp.milestones=[1ep]", "batch.ramp.totals=[32]"], "32 follows 32, which has no effect"),
        (["batch.ramp.milestones=[1ep]", "batch.ramp.totals=[513]"], "a batch of 513 samples"),
        ([*RAMP, "schedule.warmup=3steps"], "schedule.warmup=3steps: with a ramp a number of steps"),
        (["batch.ramp.in_place_of_decay=true", "schedule=constant"], "schedule.decay=constant has none"),
        (["batch.ramp.max_total=64"], "has no effect without in_place_of_decay"),
        (
            ["batch.ramp.in_place_of_decay=true", "scaling=none", "schedule=step", "schedule.milestones=[2ep]"],
            "with scaling.rule=none the best rate is the same for every batch",
        ),
        ([*RAMP, "batch.ramp.in_place_of_decay=true", "schedule=step", "schedule.milestones=[2ep]"], "Leave"),
        ([*RAMP, "batch.ramp.totals=[100,0]"], "batch.ramp.totals.1=0: must be at least 1."),
    ],
)
def test_a_ramp_that_makes_no_sense_is_refused(overrides: list[str], expected: str):
    assert any(expected in error for error in errors(*overrides)), errors(*overrides)


@pytest.mark.bad_input("a stage of a ramp that ranks cannot share")
def test_a_ramp_that_leaves_a_rank_without_samples_is_refused():
    found = errors("batch.ramp.milestones=[1ep]", "batch.ramp.totals=[7]", environ=EIGHT_RANKS)
    assert found == [line for line in found if "A global batch of 7 cannot be shared by 8 ranks" in line]


class OwnGroups(torch.optim.SGD):
    """An optimizer that makes its own groups: biases at twice the rate, and what it is given is forgotten."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        given = [one for group in params for one in group["params"]]
        halves = [[one for one in given if (one.ndim == 1) == is_bias] for is_bias in (False, True)]
        super().__init__([{"params": halves[0]}, {"params": halves[1], "lr": 2 * lr}], lr=lr)


class Evaluated(Counted):
    """As from_pretrained leaves a model."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(in_features, num_outputs)
        self.eval()


class Lazy(nn.Sequential):
    """Takes its sizes from what it sees."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(5), nn.Dropout(0.5), nn.LazyLinear(num_outputs))


def own(name: str) -> str:
    return f"model._target_={HERE}.{name}"


def test_rates_of_groups_come_from_config_and_code_and_stand_in_the_plan():
    run = prepared("parameters.lr_factor={bias: 10}")
    assert [group.get("lr_factor", 1.0) for group in run.optimizer.param_groups] == [1.0, 10.0]
    rows = {what: value for what, value, _ in plan_rows(run.numbers, run.optimizer)}
    assert rows["rates of tensors"] == "1 x 10, 1 x 1"
    optimizer = ["optimizer={_target_: " + HERE + ".OwnGroups}", "~optimizer.momentum", "~optimizer.nesterov"]
    assert [group.get("lr_factor") for group in prepared(*optimizer).optimizer.param_groups] == [None, 2.0]
    (lost,) = errors(*optimizer, "parameters.lr_factor={weight: 10}")
    assert "OwnGroups makes groups of its own, in which 1 parameters lose their factor" in lost
    (none,) = errors("parameters.lr_factor={stem: 10}")
    assert none.startswith("parameters.lr_factor, layer_decay: stem: 'stem' fits no trainable parameter")


def test_a_model_that_is_in_evaluation_mode_as_a_whole_is_refused():
    (error,) = errors(own("Evaluated"))
    assert error.startswith("model: Evaluated is in evaluation mode as a whole")


def test_lazy_modules_take_shape_before_the_optimizer_as_in_plain_torch():
    run = prepared(own("Lazy"), "seed=3")
    torch.manual_seed(stream_key(3, "initialisation"))
    truth = Lazy(1, 10)
    truth.eval()(run.train.inputs[:2])
    for (name, one), (_, other) in zip(run.model.named_parameters(), truth.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    held = {id(one) for group in run.optimizer.param_groups for one in group["params"]}
    assert held == {id(one) for one in run.model.parameters()}


@pytest.mark.parametrize(
    ("asked", "when"),
    [
        ((), "every 30 min, at the end and when stopped"),
        (("observers.checkpoint.every_minutes=null",), "at the end and when stopped"),
        (
            ("observers.checkpoint.every=2ep", "observers.checkpoint.every_minutes=0.5"),
            "every 0.5 min, every 2ep, at the",
        ),
    ],
)
def test_the_plan_tells_when_checkpoints_are_saved_and_what_they_take(asked: tuple[str, ...], when: str):
    """64 x 10 weights and 10 biases in float32."""
    run = prepare(compose_run("model=linear", "data=synthetic", "logger=none", *asked), {})
    what, value, why = checkpoint_row(run.config, run.model)
    assert (what, value) == ("checkpoints", "2 of 0.0026 MB")
    assert why.startswith(f"plus the optimizer's state; {when}")


def test_frozen_parameters_stand_in_the_plan_and_out_of_the_optimizer():
    run = prepared("model=convnet", "data=digits", r"parameters.freeze=['^blocks\.0\.']")
    names = [name for name, one in run.model.named_parameters() if not one.requires_grad]
    assert names
    assert all(name.startswith("blocks.0.") for name in names)
    held = {id(one) for group in run.optimizer.param_groups for one in group["params"]}
    assert held == {id(one) for one in run.model.parameters() if one.requires_grad}
    ((what, value, why),) = method_rows(run)
    assert (what, value) == ("frozen", f"{len(names)} of {len(list(run.model.parameters()))} tensors")
    assert "parameters.freeze" in why
    (none,) = errors("parameters.freeze=[bakbone]")
    assert none.startswith("parameters.freeze: 'bakbone' fits no trainable parameter")


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (("ema.half_life=1ep", "ema.decay=0.9"), "ema.half_life=1ep and ema.decay=0.9: are 2 averages"),
        (("ema.decay_batch_size=32",), "ema.decay_batch_size=32: has no effect without ema.decay"),
        (("ema.every=2",), "ema.start, ema.every: have no effect"),
        (("ema.uniform=true", "ema.start=4ep"), "ema.start=4ep: is 2,048 samples, and the run ends after 2,048"),
        (("ema.half_life=1steps", *RAMP), "ema.half_life=1steps: steps have several sizes in this run"),
        (("observers.checkpoint.best_by=eval/ema_val_loss",), "observers.checkpoint.best_by=eval/ema_val_loss: there"),
        (("ema.half_life=0ep",), "ema.half_life=0ep: is above 0"),
    ],
)
def test_an_average_without_sense_or_effect_is_refused(overrides: tuple[str, ...], start: str):
    (error,) = errors(*overrides)
    assert error.startswith(start)


def test_the_best_checkpoint_may_be_that_of_the_average():
    found = prepared("ema.half_life=1ep", "observers.checkpoint.best_by=eval/ema_val_accuracy")
    assert found.config.observers.checkpoint.best_by == "eval/ema_val_accuracy"


def test_a_decay_means_the_same_at_any_batch_and_the_plan_tells_the_half_life():
    small, large = (prepared("ema.decay=0.99", "ema.decay_batch_size=32", f"batch.total={size}") for size in (32, 128))
    assert small.numbers.average == large.numbers.average
    ((what, value, why),) = method_rows(large)
    assert (what, value) == ("average of weights", "half-life 2,206.96 samples")
    assert why.startswith("17.24 steps; decay 0.960596 per step of 128; from the initial weights on;")


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (("sam.m=global",), "sam.m=global: has no effect without sam.rho"),
        (("sam.adaptive=true",), "sam.adaptive=true: has no effect without sam.rho"),
        (("sam.rho=0.1",), "sam.m=micro: each micro-batch climbs by its own gradient"),
        (("sam.rho=0.1", "sam.m=8", "batch.micro=4"), "sam.m=8: the samples of one ascent are a micro-batch, and"),
        (("sam.rho=0",), "sam.rho=0: must be above 0"),
        (
            ("sam.rho=0.1", "sam.m=global", "observers.noise_scale.every=1"),
            "observers.noise_scale.every=1: does not go",
        ),
        (("sam.rho=0.1", "sam.m=global", "batch.on_out_of_memory=lower"), "batch.on_out_of_memory=lower: does not go"),
        (
            ("sam.rho=0.1", "sam.m=global", "observers.recompute.every=1"),
            "observers.recompute.every=1: does not go with",
        ),
        (
            ("sam.rho=0.1", "sam.m=global", "batch_norm=exact", "model=convnet", "data=digits"),
            "sam.rho=0.1: does not go",
        ),
    ],
)
def test_an_ascent_without_sense_or_effect_is_refused(overrides: tuple[str, ...], start: str):
    (error,) = errors(*overrides)
    assert error.startswith(start)


def test_the_plan_tells_whose_gradient_is_climbed():
    ((what, value, why),) = method_rows(prepared("sam.rho=0.1", "sam.m=8", "batch.micro=8"))
    assert (what, value) == ("sharpness-aware", "rho 0.1")
    assert why.startswith("climbs by the gradient of each micro-batch of 8; nothing more is sent")
    ((_, _, why),) = method_rows(prepared("sam.rho=0.1", "sam.m=global", environ=EIGHT_RANKS))
    assert "of the global batch; one more gradient all-reduce per step" in why
