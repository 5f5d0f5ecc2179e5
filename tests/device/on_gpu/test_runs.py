"""Runs of every kind on one real GPU: they end well, wait for nothing, and give the same bits where promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from largebatch.__main__ import main
from largebatch.gradient.step import Measures
from largebatch.training import loop
from tests.device.on_gpu.conftest import REHEARSES

PAIRS = "data=paired_views loss=info_nce model=two_views data.limit=null observers.evaluation.micro=16"
KINDS = {
    "auto": "",
    "fp32": "precision=fp32",
    "bf16, accumulated": "precision=bf16 batch.max_micro=8",
    "fp16, guarded": "precision=fp16 guard.policy=skip",
    "exact batch norm": "batch_norm=exact batch.max_micro=8 precision=bf16",
    "contrastive": PAIRS,
    "LAMB": "optimizer=lamb",
    "LARS": "optimizer=lars",
    "AdamW, clipped": "optimizer=adamw clip_norm=1.0",
    "Muon": "optimizer=muon model=mlp",
    "compiled": "precision.compile=true batch.max_micro=8",
    "ordered": "batch.micro=8 batch.reduction=ordered",
    "recomputed": "batch.micro=8 observers.recompute.every=1",
    "checkpointed activations": "precision.activation_checkpointing=true",
    "noise scale": "batch.max_micro=8 observers.noise_scale.every=2",
}
NEEDS_A_GPU = {"fp16, guarded"}


def train(options: list[str], overrides: str = "", *, folder: Path | None = None) -> int:
    own = [] if folder is None else [f"run.dir={folder}"]
    return main(["train", *options, *overrides.split(), *own])


def state(folder: Path, step: int) -> tuple[dict[str, bytes], Any]:
    """All weights of a checkpoint as bytes, and the loss scale."""
    place = folder / "checkpoints" / f"step_{step:08}"
    tensors = load_file(place / "model.safetensors") | load_file(place / "optimizer.safetensors")
    scale = json.loads((place / "values.json").read_text())["loss_scale"]
    return {name: value.view(torch.uint8).numpy().tobytes() for name, value in tensors.items() if value.dim()}, scale


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_well(options: list[str], kind: str):
    if REHEARSES and kind in NEEDS_A_GPU:
        pytest.skip("needs a GPU")
    assert train(options, KINDS[kind]) == 0


@pytest.mark.parametrize("kind", ["auto", "fp16, guarded", "ordered", "compiled", "LAMB"])
def test_deterministic_runs_have_the_same_bits_also_across_a_stop(options: list[str], tmp_path: Path, kind: str):
    if REHEARSES and kind in NEEDS_A_GPU:
        pytest.skip("needs a GPU")
    how = f"{KINDS[kind]} precision.deterministic=true observers.checkpoint.every=3steps observers.checkpoint.keep=3"
    assert train(options, how, folder=tmp_path / "one") == 0
    assert train(options, how, folder=tmp_path / "other") == 0
    assert state(tmp_path / "one", 6) == state(tmp_path / "other", 6)
    again = f"{how} resume={tmp_path / 'one/checkpoints/step_00000003'}"
    assert train(options, again, folder=tmp_path / "resumed") == 0
    assert state(tmp_path / "one", 6) == state(tmp_path / "resumed", 6)


@pytest.mark.parametrize("kind", ["auto", "fp32", "bf16, accumulated", "LAMB", "AdamW, clipped", "exact batch norm"])
def test_a_plain_step_waits_for_nothing(options: list[str], kind: str, monkeypatch: pytest.MonkeyPatch):
    """`set_sync_debug_mode` raises where an operation would wait; it does not see waits for events."""
    take_step, plain = loop.take_step, []

    def watched(run: Any, step: Any) -> Any:
        is_plain = step.number > 3 and Measures.LOSS not in step.measures
        if is_plain and not REHEARSES:
            torch.cuda.set_sync_debug_mode("error")
        try:
            return take_step(run, step)
        finally:
            plain.append(is_plain)
            if not REHEARSES:
                torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "take_step", watched)
    assert train(options, f"{KINDS[kind]} length=12steps") == 0
    assert sum(plain) > 3
