"""`bench optim`: its shapes, its arguments, its table; and the memory that it reports, of our own optimizers."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path

import pytest
import torch

from largebatch.__main__ import main
from largebatch.cli import bench
from largebatch.cli.bench import BENCHES
from largebatch.diagnostics.intervals import median_interval
from largebatch.experiments.bench import optim, optimizer_race
from largebatch.experiments.bench.optimizer_race import ALGORITHMS, peak_extra_bytes, shapes_of
from largebatch.optim import LAMB, LARS

CLI_README = Path(bench.__file__).with_name("README.md")


@pytest.mark.parametrize(
    ("name", "num_params", "num_tensors"), [("resnet50", 25_557_032, 161), ("bert_base", 109_482_240, 199)]
)
def test_the_shapes_are_those_of_the_models(name, num_params, num_tensors):
    """The published sizes: torchvision's ResNet-50 and the Hugging Face BERT-base, uncased, with its pooler."""
    shapes = shapes_of(name)
    assert (sum(map(math.prod, shapes)), len(shapes)) == (num_params, num_tensors)


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["shapes=resnet"], "shapes=resnet: 'resnet' is not known. Name one or more of resnet50, bert_base."),
        (["rounds=4"], "rounds=4: must be a whole number, 5 or more."),
        (["threads=0"], "threads=0: must be a whole number, 1 or more."),
        (["threads=1", "threads=2"], "threads is given twice"),
        (
            ["batch.total=8"],
            "'batch.total=8': an argument is KEY=VALUE with KEY one of shapes, rounds, threads, device",
        ),
        (["rounds"], "'rounds': an argument is KEY=VALUE"),
        (["device=abacus"], "device=abacus: "),
        (["json=no/such/folder/file.json"], "json=no/such/folder/file.json: there is no folder"),
    ],
)
def test_wrong_arguments_are_refused_with_the_rule(arguments, fact, capsys):
    assert main(["bench", "optim", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"largebatch bench optim: {fact}")
    assert "usage: largebatch bench optim [KEY=VALUE ...]" in said.err


def test_bench_without_a_known_name_lists_what_it_measures(capsys):
    for arguments in ([], ["optmi"]):
        assert main(["bench", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert all(f"bench {name}" in said.err for name in BENCHES)
    assert main(["bench", "--help"]) == 0
    row = next(line for line in CLI_README.read_text().splitlines() if line.startswith("| `bench` |"))
    assert {f"`{name}`" for name in BENCHES} == set(re.findall("`[a-z-]+`", row)) - {"`bench`"}
    assert main(["bench", "optim", "--help"]) == 0
    assert "rounds=N" in capsys.readouterr().out


def test_the_table_and_the_file_hold_every_optimizer(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(optimizer_race, "shapes_of", lambda name: [(40, 30), (30,), (3,)])
    monkeypatch.setenv("COLUMNS", "200")  # no folded cells
    file = tmp_path / "times.json"
    assert main(["bench", "optim", "shapes=bert_base", "rounds=6", f"json={file}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    report = json.loads(file.read_text())
    assert [race["algorithm"] for race in report["races"]] == ["LAMB", "LARS"]
    for race, rival in zip(report["races"], ("torch AdamW", "torch SGD"), strict=True):
        names = [result["name"] for result in race["results"]]
        assert names[:2] == [rival, race["algorithm"]]
        assert f"{race['algorithm']} on bert_base, 1,233 parameters: medians of 6 rounds" in said
        for result in race["results"]:
            assert len(result["milliseconds"]) == 6
            assert f"{result['name']} {statistics.median(result['milliseconds']):.1f} (" in said
    assert "limit by bytes 1.43" in said
    assert report["machine"]["torch"] == torch.__version__


def test_a_package_that_is_absent_is_named_with_the_cause(monkeypatch):
    algorithm = ALGORITHMS["LAMB"]
    monkeypatch.setattr(optimizer_race, "reason_against", lambda device: None)
    monkeypatch.setattr(optimizer_race.importlib, "import_module", lambda name: __import__("no_such_package"))
    found, absent = optimizer_race.contestants(algorithm)
    assert [name for name, _ in found] == ["torch AdamW", "LAMB", "LAMB fused"]
    assert absent[0] == "timm.optim.Lamb (No module named 'no_such_package')"


@pytest.mark.parametrize(("device", "other"), [("cpu", "LARS fused"), ("cuda:1", "LARS foreach")])
def test_torchs_kernels_take_part_beside_the_compiled_ones_and_their_absence_is_told(device, other, monkeypatch):
    for reason in (None, "CC=cc is not on PATH"):
        monkeypatch.setattr(optimizer_race, "reason_against", lambda device, reason=reason: reason)
        found, absent = optimizer_race.contestants(ALGORITHMS["LARS"], device)
        assert (other in [name for name, _ in found]) == (reason is None)
        assert ("LARS compiled, its default (CC=cc is not on PATH)" in absent) == (reason is not None)


def test_the_rows_of_slow_steps_fit_in_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    slow = [326.2, 446.5, 640.2, 446.5, 500.0, 400.0]
    results = [optimizer_race.Result("torch AdamW", 12.34, 0.0, [43.21] * 6)]
    results.append(optimizer_race.Result("pytorch_optimizer", 12.34, 0.428, slow))
    optim.print_race("LAMB on bert_base, 109,482,240 parameters", results, 1.43)
    said = capsys.readouterr().out.splitlines()
    assert said[0].strip() == "LAMB on bert_base, 109,482,240 parameters: medians of 6 rounds, 95 % intervals"
    assert (
        sum("pytorch_optimizer   446.5 (326.2-640.2)   10.33 (7.55-14.82)   12.34   42.8" in row for row in said) == 1
    )


def test_peak_memory_is_the_most_that_was_held_at_once():
    def step() -> None:
        first = torch.empty(1000)
        del first
        second = torch.empty(2000)
        third = torch.empty(3000)
        del second, third

    assert peak_extra_bytes(step) == 4 * 5000


@pytest.mark.parametrize(("optimizer_class", "share"), [(LARS, 0.01), (LAMB, 0.05)])
def test_a_step_needs_less_than_a_twentieth_of_the_parameters_as_temporary_memory(optimizer_class, share):
    """In shapes like those of BERT, the largest tensor a fifth of all; beyond the state, which the first step makes."""
    shapes = [(7630, 192), *(12 * [(192, 192), (192,), (768, 192), (768,), (192, 768), (192,), (192, 576), (576,)])]
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = optimizer_class(params, lr=1e-3)
    optimizer.step()
    assert peak_extra_bytes(optimizer.step) < share * 4 * sum(param.numel() for param in params)


def test_the_interval_of_a_median_is_made_of_order_statistics():
    assert median_interval([1.0, 2.0, 3.0]) == (1.0, 3.0)
