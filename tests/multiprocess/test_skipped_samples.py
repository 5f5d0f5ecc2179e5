"""Samples that cannot be loaded are left out: the run is that of the others, on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import open_dict

from largebatch.batch.order import SampleOrder
from largebatch.records.trackers import read_metrics
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import prepare
from largebatch.run.train_quietly import train_quietly
from largebatch.training.raised import RunFailedError
from tests.unit.data.faulty_data import BrokenFiles, broken_files

COUNT, BROKEN, BATCH, STEPS = 50, (0, 7, 8, 9, 31, 49), 20, 6
RUN = (
    f"batch.total={BATCH}", f"length={STEPS}steps", "schedule.warmup=0steps", "data.on_bad_sample=skip",
    "optimizer.momentum=0", "optimizer.weight_decay=0", "observers.metrics.every=2", "observers.ledger.enabled=true",
)  # fmt: skip


# In the order of the broken samples; see `BrokenFiles`.
REASONS = dict(
    zip(
        BROKEN,
        (
            "Sample 0 cannot be loaded: OSError: point 0 is truncated.",
            "Sample 7 is None: the data set returned nothing for it.",
            "Sample 8 holds NaN or infinity: input.",
            "Sample 9 is (Tensor float32 (7,), number), but most others are (Tensor float32 (8,), number).",
            "Sample 31 cannot be loaded: ValueError: the label 4 is none of the 4 classes, 0 to 3, that the model",
            "Sample 49 is (Tensor float64 (8,), number), but most others are (Tensor float32 (8,), number).",
        ),
        strict=True,
    )
)


def trained(
    folder: str, *overrides: str, kind: str = "BrokenFiles"
) -> tuple[list[dict[str, Any]], dict[str, Any], list[Any]]:
    """Rows of metrics.jsonl, summary and weights."""
    run = train_quietly(broken_files(*RUN, *overrides, count=COUNT, broken=BROKEN, kind=kind), folder)
    return run.rows, run.summary, [parameter.detach().numpy() for parameter in run.model.parameters()]


def sound_ids(step: int) -> list[int]:
    return [one for one in SampleOrder(COUNT, 0).ids(BATCH * step, BATCH).tolist() if one not in BROKEN]


def by_hand(weights: list[torch.Tensor], rates: list[float]) -> list[float]:
    """Gradient descent on the mean over the sound samples of each batch; the losses. `weights` are moved."""
    dataset, losses = BrokenFiles(COUNT, ()), []
    for step, rate in enumerate(rates):
        points, labels = zip(*(dataset[one] for one in sound_ids(step)), strict=True)
        loss = F.cross_entropy(F.linear(torch.stack(points).double(), *weights), torch.tensor(labels))
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= rate * gradient
        losses.append(loss.item())
    return losses


def ledger(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "ledger.jsonl")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("skipped") / "run"
    return folder, trained(str(folder))


@pytest.mark.fault(46)
def test_a_step_is_that_of_the_sound_samples_alone(reference: tuple[Path, Any]):
    folder, (_, summary, weights) = reference
    initial = prepare(broken_files(*RUN, count=COUNT, broken=BROKEN), {}).model.parameters()
    expected = [one.detach().double().clone().requires_grad_() for one in initial]
    rows = ledger(folder)
    losses = by_hand(expected, [float.fromhex(row["lr"]) for row in rows])
    np.testing.assert_allclose([float.fromhex(row["loss"]) for row in rows], losses, rtol=1e-12)
    for ours, own in zip(weights, expected, strict=True):
        np.testing.assert_allclose(ours, own.detach().numpy(), rtol=0, atol=1e-12)
    assert summary["samples_seen"] == BATCH * STEPS, "the position moves past what was skipped"


@pytest.mark.fault(46)
def test_every_skipped_sample_is_told_with_its_reason_and_counted(reference: tuple[Path, Any]):
    folder, (rows, _, _) = reference
    asked = SampleOrder(COUNT, 0).ids(0, BATCH * STEPS).tolist()
    skipped = [one for one in asked if one in BROKEN]
    told = read_metrics(folder / "skipped.jsonl")
    assert [row["sample"] for row in told] == skipped
    assert {row["sample"]: row["reason"][: len(REASONS[row["sample"]])] for row in told} == REASONS
    counts = {row["step"]: row["data/skipped"] for row in rows if "data/skipped" in row}
    assert counts == {
        step: sum(one in BROKEN for one in asked[BATCH * (step - 2) : BATCH * step]) for step in (2, 4, 6)
    }
    (problem,) = json.loads((folder / "summary.json").read_text())["problems"]
    assert problem.endswith(f"({len(skipped)} times)")


def test_an_evaluation_is_the_mean_over_the_sound_samples(reference: tuple[Path, Any]):
    _, (rows, _, weights) = reference
    dataset = BrokenFiles(COUNT, ())
    points, labels = zip(*(dataset[one] for one in range(COUNT) if one not in BROKEN), strict=True)
    outputs = F.linear(torch.stack(points).double(), *map(torch.from_numpy, weights))
    expected = F.cross_entropy(outputs, torch.tensor(labels)).item()
    last = [row for row in rows if "eval/train_loss" in row][-1]
    assert last["eval/train_loss"] == pytest.approx(expected, rel=1e-12)
    assert last["eval/train_skipped"] == len(BROKEN)
    assert "eval/val_skipped" not in last


def _validated(folder: str) -> list[dict[str, Any]]:
    config = broken_files(*RUN, "observers.evaluation.every=2steps", count=COUNT, broken=())
    with open_dict(config):
        config.data.validation.broken = list(BROKEN[:2])
    return train_quietly(config, folder).rows


def test_what_an_evaluation_leaves_out_of_the_validation_set_is_told_once(ranks, tmp_path: Path):
    rows = ranks(2).run(_validated, str(tmp_path / "run"))[0]
    assert [row["eval/val_skipped"] for row in rows if "eval/val_skipped" in row] == [2, 2, 2]
    told = sorted(
        (row["sample"], row["set"], row["reason"]) for row in read_metrics(tmp_path / "run" / "skipped.jsonl")
    )
    assert told == [(one, "validation", REASONS[one]) for one in BROKEN[:2]]


@pytest.mark.fault(46)
@pytest.mark.parametrize(
    ("world_size", "overrides"), [(1, ["batch.max_micro=1"]), (2, ["data.num_workers=1"]), (3, ["batch.micro=2"])]
)
def test_any_number_of_ranks_and_any_micro_batch_skip_alike(
    ranks, reference: tuple[Path, Any], tmp_path: Path, world_size: int, overrides: list[str]
):
    folder, (_, _, expected) = reference
    _, _, weights = ranks(world_size).run(trained, str(tmp_path / "run"), *overrides)[0]
    for ours, own in zip(weights, expected, strict=True):
        np.testing.assert_allclose(ours, own, rtol=0, atol=1e-12)
    ours, theirs = ledger(tmp_path / "run"), ledger(folder)
    assert [row["ids"] for row in ours] == [row["ids"] for row in theirs]
    samples = [
        sorted(row["sample"] for row in read_metrics(one / "skipped.jsonl")) for one in (tmp_path / "run", folder)
    ]
    assert samples[0] == samples[1]


def test_without_the_policy_a_run_is_refused_or_ends_at_the_first_of_them(tmp_path: Path):
    probed = broken_files(*RUN, "data.on_bad_sample=stop", count=COUNT, broken=[COUNT - 1])
    with pytest.raises(
        ConfigError, match=r"data\.train: Sample 49 cannot be loaded: OSError: point 49 is truncated\. Rep"
    ):
        train_quietly(probed, tmp_path / "probed")
    passed = next(one for one in SampleOrder(COUNT, 0).ids(BATCH, BATCH).tolist() if one % 7 == 4)
    unseen = broken_files(*RUN, "data.on_bad_sample=stop", count=COUNT, broken=[passed])
    with pytest.raises(RunFailedError, match=rf"Sample {passed} cannot be loaded"):
        train_quietly(unseen, tmp_path / "unseen")


def test_where_nothing_can_be_loaded_any_more_the_run_ends(tmp_path: Path):
    """A few of the samples that are tried before the start can be loaded; those of the run cannot."""
    first = SampleOrder(4000, 0).ids(0, 8)
    hopeless = broken_files(*RUN, "batch.micro=1", count=4000, broken=[one for one in range(4000) if one not in first])
    with pytest.raises(RunFailedError, match=r"Sample .* None of the next 999 samples can be used"):
        train_quietly(hopeless, tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["batch_norm=exact", "model=mlp"], "does not go with batch_norm=exact"),
        (["observers.noise_scale.every=2"], "does not go with observers.noise_scale"),
        (["observers.sharpness.every=1ep", "observers.sharpness.samples=32"], "does not go with observers.sharpness"),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else "",
)
def test_what_takes_the_sizes_of_the_plan_is_refused_beside_it(overrides: list[str], told: str):
    with pytest.raises(ConfigError, match=rf"data\.on_bad_sample=skip: {told}"):
        prepare(broken_files(*RUN, *overrides, count=COUNT, broken=BROKEN), {})


def test_a_set_in_memory_skips_as_one_on_disk(reference: tuple[Path, Any], tmp_path: Path):
    _, (_, _, expected) = reference
    _, _, weights = trained(str(tmp_path / "run"), kind="BrokenRows")
    for ours, own in zip(weights, expected, strict=True):
        np.testing.assert_allclose(ours, own, rtol=0, atol=1e-12)
    reasons = {row["sample"]: row["reason"] for row in read_metrics(tmp_path / "run" / "skipped.jsonl")}
    assert [*sorted(reasons)] == [*BROKEN]
    assert reasons[0] == "Sample 0 holds NaN or infinity: input."
    assert reasons[8] == "Sample 8 cannot be loaded: OSError: point 8 is truncated."


def test_without_skipping_a_label_out_of_range_is_named_where_it_comes(tmp_path: Path):
    passed = next(one for one in SampleOrder(COUNT, 0).ids(BATCH, BATCH).tolist() if one % 7 == 4)
    for kind, count in (("BrokenFiles", 5), ("BrokenRows", 2)):
        # The last of them is the one with the wrong label, the others do not exist.
        broken = [*range(1000, 1000 + count - 1), passed]
        config = broken_files(*RUN, "data.on_bad_sample=stop", count=COUNT, broken=broken, kind=kind)
        with pytest.raises(RunFailedError, match=rf"{passed}.* the label 4 is none of the 4 classes"):
            train_quietly(config, tmp_path / kind)
