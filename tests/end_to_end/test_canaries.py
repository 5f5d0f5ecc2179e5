"""Runs whose environment is full of secrets: no byte of what they leave, and nothing that they print, holds one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from largebatch.__main__ import main
from tests.reference.wandb_file import chunks

ROOT = Path(__file__).resolve().parents[2]
CANARIES = {
    "LB_API_TOKEN": "canary-bird-7f3a9c",  # by its name
    "LB_STORE": "yellow-place-never-there",  # read by the config, whatever its name
    "LB_PASSWORD": 'ca"na\\ry d5 ä',  # a text that every format writes in its own way
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",  # not in the config at all
}
OWN = """
import logging, os, sys, warnings
import torch

class Set(torch.utils.data.Dataset):
    def __init__(self, store, split):
        self.store, self.split = store, split
    def __len__(self):
        return 24
    def __getitem__(self, index):
        if index == 5 and self.split != "whole":
            raise OSError(f"cannot open {self.store}/5 with {os.environ['LB_PASSWORD']}")
        return torch.full((4,), float(index % 2)), index % 2

class Net(torch.nn.Module):
    def __init__(self, api_token, login, width, fails=False):
        super().__init__()
        assert (api_token, login["password"]) == (os.environ["LB_API_TOKEN"], os.environ["LB_PASSWORD"])
        self.token, self.fails, self.calls = api_token, fails, 0
        self.linear = torch.nn.Linear(4, width)
        print("printed", api_token, login)
        print("failed as", repr(login), file=sys.stderr)
        warnings.warn(f"a warning with {api_token}")
        logging.getLogger("own").error("logged %s", login["password"])
    def forward(self, x):
        self.calls += self.training
        if self.fails and self.calls > 20:
            raise RuntimeError(f"401 for {self.token} and {os.environ['WANDB_API_KEY']} at https://me:w0rd99@host/x")
        return self.linear(x)
"""
FILES = {
    "own_things.py": OWN,
    "conf/model/own.yaml": """
_target_: own_things.Net
api_token: ${oc.env:LB_API_TOKEN}
login: {password: "${oc.env:LB_PASSWORD}"}
width: 2
fails: false
""",
    "conf/data/own.yaml": """
name: own
num_classes: 2
num_features: 4
train: {_target_: own_things.Set, store: "${oc.env:LB_STORE}/images", split: train}
validation: {_target_: own_things.Set, store: "${oc.env:LB_STORE}", split: validation}
""",
}
RUN = [
    "--config-dir=conf", "data=own", "model=own", "data.on_bad_sample=skip", "length=4steps", "schedule.warmup=1steps",
    "batch.total=12", "seed=${oc.env:LB_SEED}", "scaling.base_lr=${oc.env:LB_RATE}",
    "observers.checkpoint.every=2steps", "observers.metrics.every=1", "+model.login.more='${oc.env:LB_STORE}'",
]  # fmt: skip


@pytest.fixture
def surroundings(in_a_folder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (CANARIES | {"LB_SEED": "7", "LB_RATE": "1e-2", "WANDB_MODE": "offline"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_things", None)


def found(folder: Path, *printed: str) -> list[tuple[str, str]]:
    """(file or screen, canary) for every secret that is somewhere in it."""
    texts = {
        path.name: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("own_things.")
    }
    texts |= {f"{name}, joined": b"".join(chunks(data)) for name, data in texts.items() if name.endswith(".wandb")}
    texts |= {str(path): str(path).encode() for path in folder.rglob("*")}
    texts |= {f"screen {number}": text.encode() for number, text in enumerate(printed)}
    secrets = [*CANARIES.values(), "canary-bird", 'ca\\"na', "w0rd99", "d5 "]
    return [(name, one) for name, data in texts.items() for one in secrets if one.encode() in data]


def called(*arguments: str) -> tuple[int, str]:
    screen = io.StringIO()
    with redirect_stdout(screen), redirect_stderr(screen):
        return main(arguments), screen.getvalue()


@pytest.mark.fault(64, "secret in a config or a variable", "refused, or in no byte of what a run leaves")
def test_no_byte_of_a_run_and_nothing_that_it_prints_holds_a_secret(surroundings: None, tmp_path: Path):
    """Trained with W&B and TensorBoard; resumed with other values; failed in the user's own code."""
    code, said = called("train", *RUN, "run.dir=run", "logger.tensorboard=true", "logger.plots=false")
    assert code == 0, said
    assert "printed ${oc.env:LB_API_TOKEN}" in said
    for record in ("skipped.jsonl", "overrides.txt", "config.yaml"):
        assert "${oc.env:LB_" in (tmp_path / "run" / record).read_text(), record
    assert len(list((tmp_path / "run").rglob("*.wandb"))) == 1
    assert len(list((tmp_path / "run").glob("tensorboard/*"))) == 1
    assert "seed: 7" in (tmp_path / "run" / "config.yaml").read_text(), "a number is told"

    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("LB_API_TOKEN", "canary-bird-renewed")
        code, again = called("train", *RUN, "run.dir=run", "logger=none", "resume=auto")
        assert (code, "already finished" in again) == (0, True), again
        changed.setenv("LB_STORE", "yellow-place-elsewhere")
        code, refused = called("train", *RUN, "run.dir=run", "logger=none", "resume=auto")
        assert (code, "model.login.more was ${oc.env:LB_STORE} (hash " in refused) == (2, True), refused

    code, failed = called("train", *RUN, "model.fails=true", "length=40steps", "run.dir=other", "logger=none")
    assert code == 1, failed
    assert "401 for ${oc.env:LB_API_TOKEN} and ${oc.env:WANDB_API_KEY} at https://***@host" in failed
    assert (tmp_path / "other" / "failure.rank0.txt").exists()
    assert found(tmp_path, said, again, refused, failed) == []


WHOLE = [*RUN, "data.on_bad_sample=stop", "data.train.split=whole", "data.validation.split=whole", "run.dir=run"]
SOAK = {
    "train": (["-m", "largebatch", "train", *RUN, "run.dir=run"], 0),
    "failing": (["-m", "largebatch", "train", *RUN, "run.dir=run", "model.fails=true", "length=40steps"], 1),
    "failing, 2 ranks": (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--log-dir=logs", "-m", "largebatch",
         "train", *RUN, "run.dir=run", "model.fails=true", "length=40steps"], 1,
    ),
    "accelerate": (
        ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
         "--dynamo_backend=no", "-m", "largebatch", "train", *RUN, "run.dir=run"], 0,
    ),
    "loading processes": (["-m", "largebatch", "train", *RUN, "run.dir=run", "data.num_workers=2"], 0),
    "plan": (["-m", "largebatch", "plan", *RUN], 0),
    "plan, wrong": (["-m", "largebatch", "plan", *RUN, "batch.total=${oc.env:LB_STORE}", "+x=1"], 2),
    "no such key": (["-m", "largebatch", "plan", *RUN, "batch.totl=${oc.env:LB_STORE}"], 2),
    "--cfg job --resolve": (["-m", "largebatch", "train", *RUN, "--cfg", "job", "--resolve"], 0),
    "--help": (["-m", "largebatch", "train", *RUN, "--help"], 0),
    "error of Hydra": (["-m", "largebatch", "plan", *RUN, "optimizer=${oc.env:LB_STORE}"], 2),
    "sweep": (["-m", "largebatch", "train", "-m", *RUN, "seed=1,2", "hydra.output_subdir=.hydra"], 0),
    "find-lr": (["-m", "largebatch", "find-lr", *WHOLE, "find_lr.steps=30", "find_lr.seeds=1"], None),
    "measure": (["-m", "largebatch", "measure", "sharpness", *WHOLE, "measure.samples=null",
                 "measure.sharpness.m=8"], 0),
    "verify": (["-m", "largebatch", "verify", *WHOLE], None),
    "study": (
        ["-m", "largebatch", "study", *RUN[:7], "seed=${oc.env:LB_SEED}", "run.dir=run", "study.batch_sizes=[6,12]",
         "study.trials=2", "study.seeds=1", "study.target.value=0.5", "length=20steps", "study.workers=2"], None,
    ),
}  # fmt: skip


@pytest.mark.fault(63)
@pytest.mark.soak
@pytest.mark.parametrize("name", SOAK)
def test_no_byte_of_real_processes_holds_a_secret(surroundings: None, tmp_path: Path, name: str):
    """Their folders, temporary files, logs of launchers and screens."""
    arguments, code = SOAK[name]
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"}
    ended = subprocess.run(
        [sys.executable, *arguments], env=environ, capture_output=True, text=True, check=False, timeout=600
    )
    print(f"{name}: exit code {ended.returncode}, {len(ended.stdout + ended.stderr)} characters, "
          f"{sum(path.is_file() for path in tmp_path.rglob('*'))} files")  # fmt: skip
    assert found(tmp_path, ended.stdout, ended.stderr) == [], ended.stdout + ended.stderr
    assert code in (None, ended.returncode), ended.stdout + ended.stderr
