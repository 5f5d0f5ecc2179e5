"""The same run under torchrun, under accelerate launch, on two nodes, and as one process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from largebatch.__main__ import main
from largebatch.trackers import read_metrics

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
STANDALONE = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]
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


def run(launcher: list[str], *overrides: str) -> str:
    process = start(launcher, *overrides)
    output = finish(process)
    assert process.returncode == 0, output
    return output


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


def test_two_processes_of_accelerate_train_the_run_of_one(one_process, tmp_path):
    launcher = [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    output = run(launcher, f"run.dir={tmp_path / 'run'}", "launcher.num_processes=2")
    assert output.count("where it comes from") == 1, "one rank prints"
    assert_same_run(tmp_path / "run", one_process)


def test_two_processes_of_torchrun_finish_what_one_has_begun(one_process, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(one_process, folder)
    for step in (7, 8):
        shutil.rmtree(folder / "checkpoints" / f"step_{step:08d}")
    output = run(STANDALONE, f"run.dir={folder}", "resume=auto")
    assert "step_00000004" in output
    assert_same_run(folder, one_process)


def test_two_nodes_that_meet_by_c10d_rendezvous_train_the_run_of_one(one_process, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node = [
        *TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test",
        "--rdzv-endpoint", f"localhost:{port}", "--local-addr", "localhost",
    ]  # fmt: skip
    nodes = [start(node, f"run.dir={tmp_path / 'run'}") for _ in range(2)]
    outputs = [finish(one) for one in nodes]
    assert [one.returncode for one in nodes] == [0, 0], "\n".join(outputs)
    assert_same_run(tmp_path / "run", one_process)


def test_a_launcher_that_starts_fewer_processes_than_meant_is_refused(tmp_path):
    process = start(
        [*ACCELERATE, "--cpu", "--num_processes", "2"], f"run.dir={tmp_path / 'run'}", "launcher.num_processes=2"
    )
    output = finish(process)
    assert process.returncode != 0
    assert "launcher.num_processes=2, but 1 started" in output
    assert "torchrun --standalone --nproc-per-node 2" in output
    assert not (tmp_path / "run").exists()


def test_sigterm_stops_all_ranks_after_the_same_step_and_saves_it(tmp_path):
    folder = tmp_path / "run"
    forever = ["length=100000ep", "observers.evaluation.every=null", "observers.checkpoint.every=null"]
    process = start(STANDALONE, f"run.dir={folder}", *forever)
    deadline = time.monotonic() + DEADLINE_S
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    output = finish(process)
    saved = sorted((folder / "checkpoints").iterdir())
    assert len(saved) == 1, output
    step = int(saved[0].name.removeprefix("step_"))
    assert read_metrics(folder / "metrics.jsonl")[-1]["step"] == step
    assert "stopped" in output
    assert "resume=auto" in output


LIFECYCLE = """
import os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from largebatch.runtime import leave_process_group

def join_and_leave(number):
    store = f"file://{sys.argv[1]}/{number}"
    dist.init_process_group("gloo", init_method=store, rank=int(os.environ["RANK"]), world_size=2)
    model = DistributedDataParallel(torch.nn.Linear(4, 4))
    model.register_comm_hook(None, lambda state, bucket: allreduce_hook(None, bucket))
    for _ in range(3):
        model(torch.randn(2, 4)).sum().backward()
        values = torch.zeros(4, dtype=torch.float64)
        dist.all_reduce(values, async_op=True).wait()
        del values
    leave_process_group()

for number in range(100):
    join_and_leave(number)
print("all left")
"""


def test_a_job_is_left_without_a_deadlock(tmp_path):
    """With a bare destroy_process_group, gloo's destructor waits for threads that wait for the GIL: seen within 100."""
    script = tmp_path / "lifecycle.py"
    script.write_text(LIFECYCLE)
    search_path = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env=environment() | search_path | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for rank in range(2)
    ]
    outputs = [finish(rank) for rank in ranks]
    assert all("all left" in output for output in outputs), "\n".join(outputs)
