"""A script of one's own under accelerate arrives at the weights of one process and one big batch in plain torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from largebatch.batch import SampleOrder
from tests.end_to_end import accelerate_script as script
from tests.end_to_end.test_launchers import ACCELERATE, DEADLINE_S, environment


def in_plain_torch() -> dict[str, torch.Tensor]:
    """Whole batches, their mean, and the rate of each step."""
    data, model = script.Waves(), script.Net()
    optimizer, schedule, order = script.optimizer_of(model), script.schedule(), SampleOrder(script.SAMPLES, 0)
    for step in range(script.STEPS):
        items = [data[index] for index in order.ids(step * script.BATCH, script.BATCH).tolist()]
        inputs, labels = torch.stack([one["x"] for one in items]), torch.tensor([one["labels"] for one in items])
        optimizer.param_groups[0]["lr"] = 0.05 * schedule(step * script.BATCH)
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def test_a_script_under_accelerate_trains_as_one_process_and_goes_on_from_its_state(tmp_path: Path):
    """Two ranks, loading processes, a prepared scheduler. The script compares the two ways to its end by itself."""
    command = [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "-m", script.__name__, str(tmp_path)]
    done = subprocess.run(
        command, env=environment(), cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = in_plain_torch()
    for rank in range(2):
        weights = load_file(tmp_path / f"rank{rank}_of_2.safetensors")
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-12, msg=name)
