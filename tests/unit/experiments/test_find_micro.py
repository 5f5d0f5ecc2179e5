"""`largebatch find-micro`: the search, what is said of its tries, and the verb."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from largebatch.__main__ import main
from largebatch.experiments.find_micro.predicted import PredictedFit, predicted_fit
from largebatch.experiments.find_micro.result import as_fast_as_best
from largebatch.experiments.find_micro.search import largest_fitting
from largebatch.experiments.find_micro.settings import FindMicroConfig, even_sizes, sizes_of
from largebatch.experiments.find_micro.tries import Try
from largebatch.run.config.reading import parse_section
from largebatch.run.prepare import prepare
from tests.unit.composing import compose_run


@pytest.mark.parametrize("sizes", [range(1, 41), even_sizes(40), (7,), (3, 40)], ids=str)
def test_the_search_finds_the_largest_that_fits_from_any_start_and_goes_no_further_than_it_must(sizes):
    for start in sizes:
        for most in range(max(sizes) + 2):
            tried: list[int] = []

            def fits(size: int, most: int = most, tried: list[int] = tried) -> bool:
                tried.append(size)
                return size <= most

            expected = max((one for one in sizes if one <= most), default=None)
            assert largest_fitting(sizes, start, fits) == expected
            assert len(set(tried)) == len(tried)
            above = [one for one in sizes if one > (expected or 0)]
            assert set(above[:1]) <= set(tried), "the next one was tried"
            assert max(tried) <= max(start, 2 * (expected or 0), *above[:1])


def made(size: int, *speeds: float) -> Try:
    return Try(size, 1, (), (size,), (100,), speeds)


def test_the_smallest_that_is_as_fast_is_judged_by_medians():
    slow, near, best = made(8, 1.0, 990.0, 95.0), made(16, 98.1, 1.0, 98.2), made(32, 100.0, 100.1, 99.0)
    assert as_fast_as_best([slow, near, best], 0.02) == (near, best)
    assert as_fast_as_best([slow, near, best], 0.018) == (best, best)
    assert as_fast_as_best([slow, near, best], 0.05) == (slow, best)


NORMED = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 10))
"""
TINY = ["data=digits", "data.limit=64", "model=mlp", "batch.total=24", "run.dir=out"]


@pytest.mark.usefixtures("in_a_folder")
def test_the_verb_names_the_key_to_use_and_grades_the_prediction(capsys: pytest.CaptureFixture[str]):
    asked = ["find_micro.memory=1GiB", "find_micro.headroom=0.25", "find_micro.start=6"]
    assert main(["find-micro", *TINY, "batch.ramp.milestones=[1ep]", "batch.ramp.totals=[40]", *asked]) == 0
    said, record = capsys.readouterr().out, json.loads(Path("out/find_micro.json").read_text())
    numbers = record["numbers"]
    assert record["kind"] == "find_micro"
    assert (numbers["key"], numbers["largest"], numbers["batch_size"]) == ("batch.max_micro", 40, 40)
    assert [one["size"] for one in numbers["tries"]] == [6, 10, 20, 40]
    assert {one["limits"][0] for one in numbers["tries"]} == {3 * 2**28}
    assert "The largest micro-batch that fits is batch.max_micro=40: peak " in said
    assert "768 MiB for tensors, which leaves 25% free. It is the largest of a rank, whose share is 40 of 40" in said
    assert f"is batch.max_micro={numbers['as_fast']}: " in said
    assert numbers["predicted"]["size"] == 40
    assert "The largest was predicted as 40 and measured as 40" in said
    assert Path("out/find_micro.png").stat().st_size > 5000


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize("micro", ["batch.micro=5", "batch.max_micro=5"])
def test_a_model_that_fails_on_one_sample_is_never_given_one(micro: str, capsys: pytest.CaptureFixture[str]):
    Path("normed.py").write_text(NORMED)
    own = ["data=digits", "data.limit=64", "model=by_target", "model._target_=normed.net", "batch.total=13"]
    asked = ["find_micro.memory=1GiB", "find_micro.start=1", "run.dir=out", micro, "batch_norm=per_micro_batch"]
    assert main(["find-micro", *own, *asked]) == 0
    tried = {one["size"] for one in json.loads(Path("out/find_micro.json").read_text())["numbers"]["tries"]}
    # Pinned, 13 leaves one sample at 1, 2, 3, 4, 6 and 12; split evenly at 1 and 2.
    assert min(tried) == (5 if micro == "batch.micro=5" else 3)
    assert not tried & {6, 12} or micro == "batch.max_micro=5"
    assert "The model fails on one sample alone" in capsys.readouterr().out


@pytest.mark.usefixtures("in_a_folder")
def test_where_nothing_fits_the_verb_says_by_how_much_and_fails(capsys: pytest.CaptureFixture[str]):
    assert main(["find-micro", *TINY, "find_micro.memory=100KiB"]) == 1
    said = capsys.readouterr().out
    assert "No micro-batch fits: with one of 1, rank 0 runs short of 95 KiB for tensors, which leaves 5% free." in said
    assert "predicted as none and measured as none" in said


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "find_micro.memory=null: a CPU has no memory of its own"),
        (["find_micro.memory=1GiB", "model=convnet", "batch_norm=exact"], "batch_norm=exact: all micro-batches"),
        (
            ["find_micro.memory=1GiB", "data=paired_views", "model=two_views", "loss=info_nce"],
            "compares all samples of a global batch, so that a rank cannot try its passes alone",
        ),
        (["find_micro.memory=1GiB", "precision.compile=true"], "precision.compile=True: on CPUs tensors are counted"),
        (["find_micro.memory=1GiB", "find_micro.start=25"], "find_micro.start=25: a micro-batch of 1 ranks"),
        (["find_micro.memory=1"], "'1' has no unit"),
        (["find_micro.memory=1GiB", "find_micro.warmup=1"], "find_micro.warmup=1: must be at least 2"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_the_ranks_meet(
    overrides: list[str], told: str, capsys: pytest.CaptureFixture[str]
):
    data = [one for one in TINY if "paired" not in str(overrides) or not one.startswith(("data", "model"))]
    assert main(["find-micro", *data, *overrides]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not Path("out").exists()


def test_a_predicted_peak_is_that_of_the_size_beside_it():
    """Between 12 and 24 samples a plan of 24 has none; 17 would fit."""
    config = compose_run("data=digits", "data.limit=64", "batch.total=24", "find_micro.memory=1GiB", "precision=fp32",
                         "find_micro.headroom=0", config_name="find_micro")  # fmt: skip
    options = parse_section(config, "find_micro", FindMicroConfig)
    prepared = prepare(config, os.environ)
    sizes = sizes_of(prepared, options, is_on_gpu=False)

    def predicted(num_bytes: int, *kept: int) -> PredictedFit:
        within = replace(sizes, sizes=kept or sizes.sizes)
        return predicted_fit(prepared, options.model_copy(update={"memory": num_bytes}), within, is_on_gpu=False)

    twelve, all_24 = predicted(2**30, 12), predicted(2**30, 24)
    assert twelve.peak < all_24.peak
    assert predicted((twelve.peak + all_24.peak) // 2) == twelve
