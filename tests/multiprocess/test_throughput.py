"""Tokens per second and utilisation in rows and summary, on ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largebatch.run.train_quietly import train_quietly
from tests.multiprocess.pool import RankPool
from tests.unit.composing import compose_run

CONTEXT, WIDTH, VOCABULARY = 16, 8, 50
GPT = (
    "data=text", f"data.context_length={CONTEXT}", f"data.vocab_size={VOCABULARY}", "model.num_layers=1",
    "model.num_heads=1", f"model.width={WIDTH}", "data.train.tokenizer=null", f"data.train.vocab_size={VOCABULARY}",
    "data.validation.tokenizer=null", f"data.validation.vocab_size={VOCABULARY}", "batch.total=112tokens",
    "length=448tokens", "observers.metrics.every=2", "precision.peak_tflops=0.5", "precision=fp32",
)  # fmt: skip


def trained(folder: str, *overrides: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    tokens = Path(folder) / "tokens.npy"
    one = train_quietly(compose_run(*GPT, f"data.path={tokens}", *overrides), Path(folder) / "run")
    return one.rows, one.summary


def test_rows_and_summary_have_tokens_and_utilisation_of_all_ranks(ranks: Callable[[int], RankPool], tmp_path: Path):
    np.save(tmp_path / "tokens.npy", np.arange(4000, dtype=np.uint16) % VOCABULARY)
    rows, summary = ranks(3).run(trained, str(tmp_path))[0]
    # PaLM, appendix B: 6 N + 12 L D T operations per token.
    flops = CONTEXT * (6 * (12 * WIDTH**2 + VOCABULARY * WIDTH) + 12 * WIDTH * CONTEXT)
    training = [row for row in rows if "train/loss" in row]
    assert len(training) == 2
    for row in training:
        samples_per_s = row["train/samples_per_s"]
        assert row["train/tokens_per_s"] == pytest.approx(CONTEXT * samples_per_s)
        assert row["train/tokens_per_s_per_device"] == pytest.approx(CONTEXT * samples_per_s / 3)
        assert row["train/mfu"] == pytest.approx(samples_per_s * flops / (3 * 0.5e12))
    assert (summary["samples_seen"], summary["tokens_seen"], summary["steps"]) == (28, 448, 4)
    assert summary["samples_per_s"] == pytest.approx(28 / summary["train_seconds"])
    assert summary["mfu"] == pytest.approx(summary["samples_per_s"] * flops / (3 * 0.5e12))
