"""`largebatch report --wandb`: the same figures in an offline run of W&B, without a key and without a question."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import wandb

from largebatch.__main__ import main
from tests.reference.wandb_file import read_run
from tests.unit.records.report_folders import write_run


def test_figures_and_page_are_in_an_offline_run_beside_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in [*(name for name in os.environ if name.startswith("WANDB_")), "NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_run(tmp_path / "a", 32)
    write_run(tmp_path / "b", 64, optimizer="<b>")
    page = tmp_path / "out" / "page.html"
    assert main(["report", str(tmp_path), "--out", str(page), "--title", "Two runs", "--wandb", "study"]) == 0
    wandb.teardown()  # waits until the last block is on disk
    assert "upload: wandb sync" in capsys.readouterr().out
    run = read_run(page.parent)
    assert (run.project, run.name, run.job_type) == ("study", "Two runs", "report")
    kinds = {key.removesuffix("/_type"): kind for row in run.history for key, kind in row.items() if "/_type" in key}
    assert kinds.pop("report/page") == "html-file"
    assert set(kinds.values()) == {"plotly-file"}
    assert {"report/training/train_loss", "report/batches/accuracy_of_batch", "report/explorer/explorer_step_time"} <= {
        *kinds
    }
    (media,) = page.parent.rglob("train_loss*.plotly.json")
    drawn = json.loads(media.read_text())
    assert drawn["layout"]["xaxis"]["title"]["text"] == "samples seen"
    assert {line["name"] for line in drawn["data"]} == {"batch 32, LARS", "batch 64, &lt;b&gt;"}
    assert len(drawn["data"][0]["y"]) == 8
