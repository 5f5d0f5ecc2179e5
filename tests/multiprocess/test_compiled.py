"""Blocks that are compiled train the same run: on several ranks, in several micro-batches, and across a resume."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.run.train_quietly import train_quietly
from tests.unit.composing import compose_run

SMALL = (
    "data=digits", "data.limit=96", "model=mlp", "model.hidden=[8,8]", "batch.total=24", "batch.micro=6",
    "observers.evaluation.every=null", "precision=fp64", "schedule=constant", "schedule.warmup=0ep",
)  # fmt: skip
HALF_WAY = "observers.checkpoint.every=2steps"


def weights_after(steps: int, folder: str, *overrides: str) -> tuple[dict[str, Any], int]:
    """Weights of a run of this rank, and the graphs that it compiled. Torch traces and runs them; no code is made."""
    from torch._dynamo.utils import counters

    counters.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        config = compose_run(*SMALL, f"length={steps}steps", *overrides)
        model = train_quietly(config, folder).model
    return {name: value.numpy() for name, value in model.state_dict().items()}, counters["stats"]["unique_graphs"]


def test_compiled_blocks_on_two_ranks_and_a_resume_without_them_are_the_run_of_one_rank(ranks, tmp_path: Path):
    ((plain, none),) = ranks(1).run(weights_after, 4, str(tmp_path / "plain"))
    compiled = ranks(2).run(weights_after, 4, str(tmp_path / "two"), "precision.compile=blocks", HALF_WAY)
    assert none == 0
    assert [graphs for _, graphs in compiled] == [6, 6], "two blocks; one size in training, two in the evaluation"
    half = tmp_path / "two" / "checkpoints" / "step_00000002"
    ((resumed, _),) = ranks(1).run(weights_after, 4, str(tmp_path / "on"), f"resume={half}")
    for weights in (*(weights for weights, _ in compiled), resumed):
        assert weights.keys() == plain.keys()
        for name, value in plain.items():
            np.testing.assert_allclose(weights[name], value, rtol=1e-12, atol=1e-12, err_msg=name)
