"""When two runs are the same run: the ledger line by line, and the last checkpoint byte by byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from largebatch.records.checkpoint import newest_valid
from largebatch.records.trackers import Row, read_metrics

NUM_STEPS = 16
RECORDS = ("model.safetensors", "optimizer.safetensors")
_OF_THIS_PROCESS = ("wall_s", "eval/seconds", "train/samples_per_s", "memory/peak_bytes")


def ledger(folder: Path) -> list[str]:
    """Its lines."""
    return (folder / "ledger.jsonl").read_text().splitlines()


def evaluations(folder: Path) -> list[Row]:
    """The rows of metrics.jsonl that tell of one, without times."""
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "eval/val_loss" in row]
    return [{key: value for key, value in row.items() if key not in ("wall_s", "eval/seconds")} for row in rows]


def rows_by_step(folder: Path) -> dict[int, Row]:
    """All columns of metrics.jsonl but times and memory; each is there once per step."""
    steps: dict[int, Row] = {}
    for row in read_metrics(folder / "metrics.jsonl"):
        known = steps.setdefault(int(row["step"]), {})
        for key, value in row.items():
            if key not in _OF_THIS_PROCESS and not key.startswith(("time/", "stragglers/")):
                assert known.setdefault(key, value) == value, key
    return steps


def saved(folder: Path) -> Path:
    """The newest checkpoint, which must be whole, with all that a directory of its kind has and nothing else."""
    checkpoint, rejected = newest_valid(folder / "checkpoints")
    assert checkpoint is not None
    assert rejected == []
    names = {path.name for path in checkpoint.path.iterdir()} - {"statistics.safetensors"}  # of batch norm over ranks
    assert names == {*RECORDS, "values.json", "MANIFEST.json"}
    return checkpoint.path


def assert_same_run(folder: Path, golden: Path, *, num_steps: int = NUM_STEPS) -> None:
    """Bit for bit: ids, learning rates, losses and weights of all steps, weights and optimizer at the end."""
    assert ledger(folder) == ledger(golden)
    assert [json.loads(line)["step"] for line in ledger(folder)] == list(range(1, num_steps + 1))
    ours, theirs = saved(folder), saved(golden)
    assert ours.name == f"step_{num_steps:08d}"
    for name in RECORDS:
        assert _sha256(ours / name) == _sha256(theirs / name), name
    leftovers = [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]
    assert leftovers == [], "the next save removes what a crash left"


def assert_same_samples(folder: Path, golden: Path, *, tolerance: float) -> None:
    """Ids and learning rates bit for bit, losses and final weights within a relative tolerance."""
    ours, theirs = ([json.loads(line) for line in ledger(one)] for one in (folder, golden))
    for field in ("step", "samples_seen", "ids", "lr"):
        assert [row[field] for row in ours] == [row[field] for row in theirs], field
    losses = [[float.fromhex(row["loss"]) for row in rows] for rows in (ours, theirs)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=tolerance, atol=0)
    weights, expected = (load_file(saved(one) / "model.safetensors") for one in (folder, golden))
    for name, value in expected.items():
        largest = float(value.abs().max())
        torch.testing.assert_close(weights[name], value, rtol=0, atol=tolerance * largest, msg=name)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
