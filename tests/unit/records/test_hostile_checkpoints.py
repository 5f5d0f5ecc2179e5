"""Checkpoints by strangers are passed over and named, whatever is in them; unusual ones of a run's own are taken."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from largebatch.records.checkpoint import (
    CheckpointError,
    load_checkpoint,
    pack_optimizer,
    require_model_fit,
    require_run_fit,
    save_checkpoint,
    unpack_optimizer,
)
from tests.unit.records.hostile_checkpoints import HOSTILE_MODULE, MODEL, PLANTED, Case, families, mutations, seal
from tests.unit.records.hostile_consumers import GOOD, HOSTILE, Saved, tried

SEED, IN_SOAK = 16, 300
# Of each family, so many in every run of the tests: those that take no time.
USUAL = {"files": 14, "bytes": 8, "headers": 10, "manifest": 8, "tensors": 8, "values": 12}
SLOW = ("MB of", "objects", "long text", "100,000")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved.made(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Is there, once the module that hostile checkpoints name was imported."""
    (tmp_path / f"{PLANTED}.py").write_text(HOSTILE_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


def faults_of(cases: list[Case], saved: Saved, folder: Path) -> dict[str, list[str]]:
    found = {}
    for case in cases:
        if faults := tried(saved, case, folder / "case"):
            found[case.name] = faults
        shutil.rmtree(folder / "case")
        for outside in folder.glob("outside_*"):
            shutil.rmtree(outside) if outside.is_dir() else outside.unlink()
    return found


@pytest.mark.fault(61, "hostile checkpoint", "passed over or refused with its reason; nothing imported, no hang")
def test_every_kind_of_hostile_checkpoint_is_passed_over_and_named_by_every_consumer(
    saved: Saved, canary: Path, tmp_path: Path
) -> None:
    draw = random.Random(SEED)
    cases = []
    for name, family in families(saved.folder / "checkpoints" / HOSTILE).items():
        quick = [case for case in family if not any(slow in case.name for slow in SLOW)]
        cases += draw.sample(quick, USUAL[name])
    assert faults_of(cases, saved, tmp_path) == {}
    assert not canary.exists()


@pytest.mark.fault(
    63, "300 hostile checkpoints, 300 damaged folders, secrets in 16 kinds of processes", "as 61, 62 and 64"
)
@pytest.mark.soak
def test_three_hundred_hostile_checkpoints(saved: Saved, canary: Path, tmp_path: Path) -> None:
    directory = saved.folder / "checkpoints" / HOSTILE
    draw = random.Random(SEED)
    found = families(directory) | {"mutations": list(mutations(directory, 60, SEED))}
    counts = {name: min(len(family), IN_SOAK // len(found)) for name, family in found.items()}
    counts["values"] += IN_SOAK - sum(counts.values())
    cases = {name: draw.sample(family, counts[name]) for name, family in found.items()}
    wrong = {name: faults_of(family, saved, tmp_path) for name, family in cases.items()}
    for name, family in cases.items():
        print(f"{name:<10} {len(found[name]):>5} cases, {len(family):>3} tried, {len(wrong[name]):>3} wrong")
    assert sum(map(len, cases.values())) == IN_SOAK
    assert Counter({name: len(faults) for name, faults in wrong.items() if faults}) == {}, wrong
    assert not canary.exists()


def test_the_planted_module_would_leave_its_canary(canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    __import__(PLANTED)
    monkeypatch.delitem(sys.modules, PLANTED)
    assert canary.exists()


# --- what is unusual and valid ---


def old_values(values: dict[str, Any]) -> None:
    """As the first version wrote them."""
    for key in ("best", "evaluation_owed", "guard"):
        values.pop(key, None)
    for key in ("content", "code", "model_files", "batch_norm", "ramp"):
        values["identity"].pop(key, None)


def beside(directory: Path) -> None:
    """What a person, a file browser or a backup leaves there."""
    for name in (".DS_Store", "notes.txt", "MANIFEST.json~"):
        (directory / name).write_text("")
    (directory / "old").mkdir()
    os.link(directory / MODEL, directory.parents[2] / "a_backup_by_hard_links")


def test_a_checkpoint_of_the_first_version_and_one_with_files_beside_it_are_gone_on_from(
    saved: Saved, tmp_path: Path
) -> None:
    shutil.copytree(saved.folder, tmp_path / "run")
    directory = tmp_path / "run" / "checkpoints" / HOSTILE
    rewrite(directory, old_values)
    beside(directory)
    found, notes = saved.resume(tmp_path / "run")
    assert (found and found.path, notes) == (directory, [])


def test_a_folder_of_checkpoints_behind_a_link_is_one_as_any_other(saved: Saved, tmp_path: Path) -> None:
    """On another disk, as on clusters; only what lies in the folder must not lead out of it."""
    shutil.copytree(saved.folder, tmp_path / "run")
    os.rename(tmp_path / "run" / "checkpoints", tmp_path / "scratch")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "scratch")
    (tmp_path / "start_here").symlink_to(tmp_path / "scratch" / GOOD)
    found, notes = saved.resume(tmp_path / "run")
    assert (found and found.step, notes) == (4, [])
    named, _ = saved.resume(tmp_path / "run", str(tmp_path / "start_here"))
    assert named is not None
    assert named.step == 2


def rewrite(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    import json

    values = json.loads((directory / "values.json").read_text())
    change(values)
    (directory / "values.json").write_text(json.dumps(values, indent=1) + "\n")
    seal(directory)


class Unusual(nn.Module):
    """Parameters and buffers of every kind that a state_dict can hold."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2, dtype=dtype))
        self.scalar = nn.Parameter(torch.tensor(2.0, dtype=dtype))
        self.nothing = nn.Parameter(torch.empty(0, 3, dtype=dtype))
        self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.head = nn.Linear(2, 3, bias=False, dtype=dtype)
        self.head.weight = self.weight
        self.shift = nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=False)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        self.register_buffer("largest", torch.tensor(-torch.inf))
        self.register_buffer("unknown", torch.tensor([torch.nan, 1.0]))
        self.register_buffer("log_prior", torch.zeros(2))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("ids", torch.tensor([2**62, -1]))
        self.register_buffer("halves", torch.zeros(2, dtype=torch.float16))


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [one for one in module.parameters() if one.requires_grad]


def overflown(module: nn.Module) -> torch.optim.Optimizer:
    optimizer = stepped(AdamW(trained(module), amsgrad=True))
    for state in optimizer.state.values():
        if not state["exp_avg_sq"].is_complex():
            state["exp_avg_sq"].fill_(torch.inf)
    return optimizer


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "no state yet": lambda module: AdamW(trained(module)),
    "no state at all": lambda module: stepped(SGD(trained(module), lr=0.1)),
    "state": lambda module: stepped(AdamW(trained(module))),
    "state of a few": lambda module: stepped_one(AdamW(trained(module))),
    "squares that overflowed": overflown,
}


def stepped_one(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The others were left out of every pass."""
    parameter = optimizer.param_groups[0]["params"][0]
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def checkpoint_of(module: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, values: dict[str, Any]) -> Path:
    tensors, packed = pack_optimizer(optimizer, {one: name for name, one in module.named_parameters()})
    return save_checkpoint(
        folder,
        step=4,
        tensors={"model": dict(module.state_dict()), "optimizer": tensors},
        values=values | {"optimizer": packed},
        keep=9,
    )


@pytest.fixture(scope="module")
def values(saved: Saved) -> dict[str, Any]:
    return load_checkpoint(saved.folder / "checkpoints" / HOSTILE).values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_unusual_model_comes_back(name: str, dtype: torch.dtype, values: dict[str, Any], tmp_path: Path) -> None:
    module = Unusual(dtype)
    optimizer = OPTIMIZERS[name](module)
    module.largest.fill_(7.0)
    module.log_prior[0] = -torch.inf
    path = checkpoint_of(module, optimizer, tmp_path, values)
    again = Unusual(dtype)
    resumed = type(optimizer)(trained(again), **{key: optimizer.defaults[key] for key in ("lr", "weight_decay")})
    if "amsgrad" in optimizer.defaults:
        resumed.param_groups[0]["amsgrad"] = optimizer.defaults["amsgrad"]
    found = load_checkpoint(path, partial(require_run_fit, module=again, optimizer=resumed))
    again.load_state_dict(found.tensors["model"])
    names = {one: name for name, one in again.named_parameters()}
    unpack_optimizer(resumed, found.tensors["optimizer"], found.values["optimizer"], names)
    before, after = module.state_dict(), again.state_dict()
    assert all(torch.equal(before[key].nan_to_num(), after[key].nan_to_num()) for key in before)
    assert len(resumed.state) == len(optimizer.state)


@pytest.mark.parametrize(
    ("name", "index"),
    [("weight", 0), ("phase", 0), ("scalar", ()), ("norm.running_var", 1), ("norm.running_mean", 0), ("shift", 0)],
)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_must_be_finite_and_is_not_is_named(
    name: str, index: Any, number: float, values: dict[str, Any], tmp_path: Path
) -> None:
    module = Unusual()
    optimizer = AdamW(trained(module))
    state: dict[str, Tensor] = module.state_dict()
    with torch.no_grad():
        state[name][index] = number
    path = checkpoint_of(module, optimizer, tmp_path, values)
    fresh = Unusual()
    if name == "shift":  # frozen, and the model itself starts with what is infinite
        require_model_fit(load_checkpoint(path), fresh)
        return
    with pytest.raises(CheckpointError, match=rf"step_00000004: {name} is not finite\. Use an older checkpoint"):
        load_checkpoint(path, partial(require_model_fit, module=fresh))


def test_weights_of_another_precision_are_measured_and_not_resumed(values: dict[str, Any], tmp_path: Path) -> None:
    module = nn.Linear(2, 2, dtype=torch.float64)
    path = checkpoint_of(module, AdamW(module.parameters()), tmp_path, values)
    single = nn.Linear(2, 2)
    load_checkpoint(path, partial(require_model_fit, module=single, any_precision=True))
    with pytest.raises(CheckpointError, match=r"weight is float64 \[2, 2\] in the checkpoint and float32 \[2, 2\] in"):
        load_checkpoint(path, partial(require_run_fit, module=single, optimizer=AdamW(single.parameters())))


@pytest.mark.fault(61)
def test_a_file_that_cannot_be_this_model_is_refused_before_a_byte_of_it_is_read(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large it says it is: its hash would take hours."""
    shutil.copytree(saved.folder, tmp_path / "run")
    monkeypatch.setattr("largebatch.records.checkpoint.manifest._fingerprint", lambda path: pytest.fail("it was read"))
    module = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load_checkpoint(tmp_path / "run" / "checkpoints" / HOSTILE, partial(require_model_fit, module=module))
