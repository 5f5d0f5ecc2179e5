"""The same run under torchrun, under accelerate launch, on two nodes, and as one process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from accelerate.commands import launch
from safetensors.torch import load_file

from largebatch.__main__ import main
from largebatch.records.trackers import read_metrics

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]  # what `accelerate launch` runs
DEADLINE_S = 400  # a first start reads gigabytes of libraries from a cold disk

# Pinned micro-batches and double precision: then every launcher must arrive at the same weights. The batch changes on
# the way: three steps of 12 samples, two of 30 and three of 24; the checkpoint of step 4 lies inside the ramp.
RUN = [
    "-m", "largebatch", "train", "data=digits", "data.limit=96", "model=convnet", "model.width=4", "precision=fp64",
    "batch.total=12", "batch.micro=6", "batch.ramp.milestones=[36samples,90samples]", "batch.ramp.totals=[30,24]",
    "length=170samples", "schedule.warmup=24samples", "observers.metrics.every=1", "logger=none",
    "observers.evaluation.every=66samples", "observers.checkpoint.every=66samples", "observers.checkpoint.keep=3",
]  # fmt: skip


def environment() -> dict[str, str]:
    hidden = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "WANDB_API_KEY")
    kept = {k: v for k, v in os.environ.items() if k not in hidden and not k.startswith("ACCELERATE_")}
    return kept | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def start(launcher: list[str], *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*launcher, *RUN, *overrides],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """The output of a process that ends in time; a process that hangs is killed with its children."""
    try:
        return process.communicate(timeout=DEADLINE_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running after {DEADLINE_S} s:\n{process.communicate()[0]}")


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "step_00000008" / "model.safetensors")


def assert_same_run(folder: Path, reference: Path) -> None:
    ours, theirs = read_metrics(folder / "metrics.jsonl"), read_metrics(reference / "metrics.jsonl")
    assert [row["samples_seen"] for row in ours] == [row["samples_seen"] for row in theirs]
    steps = [row["samples_seen"] for row in ours if "train/loss" in row]
    assert steps == [12, 24, 36, 66, 96, 120, 144, 168]
    for key in ("train/loss", "train/lr", "train/grad_norm", "eval/val_loss", "gap/loss"):
        mine, reference_values = ([row[key] for row in rows if key in row] for rows in (ours, theirs))
        np.testing.assert_allclose(mine, reference_values, rtol=1e-12, atol=1e-12, err_msg=key)
    weights, expected = final_weights(folder), final_weights(reference)
    assert weights.keys() == expected.keys()
    for name in weights:  # running statistics of batch norm, too
        torch.testing.assert_close(
            weights[name], expected[name], rtol=0, atol=1e-12 * float(expected[name].abs().max())
        )


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "run"
    assert main([*RUN[2:], f"run.dir={folder}"]) == 0
    return folder


@pytest.mark.fault(35)
def test_two_nodes_that_meet_by_c10d_rendezvous_finish_what_one_process_has_begun(one_process, tmp_path):
    """One is launched by torchrun, the other by accelerate, whose agent it is as well."""
    folder = tmp_path / "run"
    shutil.copytree(one_process, folder)
    for step in (7, 8):
        shutil.rmtree(folder / "checkpoints" / f"step_{step:08d}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [
        *TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"localhost:{port}", "--local-addr", "localhost",
    ]  # fmt: skip
    accelerate = [
        *ACCELERATE, "--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--machine_rank", "1",
        "--rdzv_backend", "c10d", "--main_process_ip", "localhost", "--main_process_port", str(port),
    ]  # fmt: skip
    options = [f"run.dir={folder}", "resume=auto", "launcher.num_processes=2"]
    nodes = [start(node, *options) for node in (torchrun, accelerate)]
    outputs = [finish(one) for one in nodes]
    assert [one.returncode for one in nodes] == [0, 0], "\n".join(outputs)
    assert "step_00000004" in "".join(outputs)
    assert "".join(outputs).count("where it comes from") == 1, "one rank prints"
    assert_same_run(folder, one_process)


@pytest.mark.bad_input("a launcher that accelerate does not see")
def test_a_launcher_that_starts_fewer_processes_than_meant_is_refused(tmp_path, monkeypatch, no_launcher, capsys):
    """What `accelerate launch` would start is asked of itself, and started here."""
    meant = [*RUN, f"run.dir={tmp_path / 'run'}", "launcher.num_processes=2"]
    options = launch.launch_command_parser().parse_args(["--cpu", "--num_processes", "2", *meant])
    started: list[tuple[list[str], dict[str, str]]] = []

    def note(command: list[str], env: dict[str, str]) -> MagicMock:
        started.append((command, env))
        return MagicMock(returncode=0)

    with monkeypatch.context() as patched:
        patched.setattr(launch.subprocess, "Popen", note)
        launch.launch_command(options)
    ((command, environ),) = started
    assert command == [sys.executable, *meant]
    assert environ.items() >= os.environ.items()
    for name in environ.keys() - os.environ.keys():
        monkeypatch.setenv(name, environ[name])
    assert main(meant[2:]) == 2
    said = capsys.readouterr().err
    assert "launcher.num_processes=2, but 1 started" in said
    assert "torchrun --standalone --nproc-per-node 2" in said
    assert not (tmp_path / "run").exists()
