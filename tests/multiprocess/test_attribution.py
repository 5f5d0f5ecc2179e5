"""Two ranks make the runs of an attribution that one process makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from largebatch.__main__ import main

ASKED = ["attribute", "data=synthetic", "data.train.num_samples=40", "data.validation.num_samples=8", "model=linear",
         "length=2ep", "batch.total=10", "attribute.small=4", "attribute.seeds=1", "attribute.orders=both",
         "precision=fp64", "attribute.metric=eval/val_accuracy"]  # fmt: skip


def attributed(folder: str) -> int:
    return main([*ASKED, f"run.dir={folder}"])


def test_two_ranks_attribute_as_one_does(ranks: Any, tmp_path: Path):
    found = []
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        assert ranks(world_size).run(attributed, str(folder)) == [0] * world_size
        rows = [json.loads(line.read_text()) for line in sorted(folder.glob("runs/*/summary.json"))]
        found.append([row["eval/val_loss"] for row in rows])
        parts = json.loads((folder / "attribution.json").read_text())["numbers"]
        assert len(parts["parts"]) == 3
    assert len(found[0]) == 5
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)
