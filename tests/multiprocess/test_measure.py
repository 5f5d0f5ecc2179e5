"""`largebatch measure` on the ranks of a launcher."""

from __future__ import annotations

import contextlib
import io
import json

import pytest

from largebatch.__main__ import main

SMALL = [
    "model=mlp", "model.hidden=[8]", "measure.samples=64", "measure.sharpness.m=16",
    "measure.sharpness.trace_samples=4", "measure.sharpness.line_points=3", "measure.sharpness.plane_points=3",
]  # fmt: skip


def measure(*arguments: str) -> tuple[int, str]:
    """The exit code, and what was printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        return main(["measure", *arguments]), said.getvalue()


def test_two_ranks_of_a_launcher_measure_what_one_process_does(ranks, tmp_path):
    found = {}
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        answers = ranks(world_size).run(measure, "sharpness", *SMALL, f"run.dir={folder}")
        assert [code for code, _ in answers] == [0] * world_size, answers
        assert "".join(said for _, said in answers).count("sharpness of the initial weights") == 1, "one rank prints"
        found[world_size] = json.loads((folder / "sharpness.json").read_text())
        assert found[world_size]["world_size"] == world_size
        found[world_size] = found[world_size]["numbers"]
    for name in ("lambda_max", "trace", "box", "m_sharpness"):
        assert found[2][name]["value"] == pytest.approx(found[1][name]["value"], rel=1e-5)
