"""`largebatch.train` called by every rank of a launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import largebatch

RUN = ["debug=tiny", "length=3steps", "batch.micro=8", "precision=fp64"]


def trained(folder: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], int]:
    run = largebatch.train([*RUN, f"run.dir={folder}"], quiet=True)
    return {"status_of_call": run.status, **run.summary}, dict(run.model.state_dict()), len(run.rows)


def refused(folder: str) -> str:
    try:
        largebatch.train([*RUN, f"run.dir={folder}", "batch.total=1"])
    except largebatch.ConfigError as error:
        return str(error)
    return ""


def test_ranks_get_the_same_run_and_it_is_that_of_one_process(ranks: Any, tmp_path: Path):
    ours, theirs = ranks(2).run(trained, str(tmp_path / "two"))
    ((expected, weights, num_rows),) = ranks(1).run(trained, str(tmp_path / "one"))
    times = {"train_seconds", "samples_per_s", "eval/seconds", "checkpoint", "measured"}
    summaries = [{key: value for key, value in one.items() if key not in times} for one in (ours[0], theirs[0])]
    assert summaries[0] == summaries[1]
    assert [Path(str(one["checkpoint"])).name for one in (ours[0], theirs[0])] == ["step_00000003", "None"]
    assert ours[0].keys() == expected.keys()
    assert ours[2] == theirs[2] == num_rows
    for name, value in weights.items():
        torch.testing.assert_close(ours[1][name], value, rtol=0, atol=1e-15)
        assert torch.equal(ours[1][name], theirs[1][name])


def test_every_rank_gets_the_error(ranks: Any, tmp_path: Path):
    messages = ranks(2).run(refused, str(tmp_path))
    assert ["cannot be shared by 2 ranks" in one or "fewer than the 2 ranks" in one for one in messages] == [True, True]
