"""Streams: the same samples per step on any ranks and workers, also after a resume on others."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from omegaconf import DictConfig, open_dict
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from largebatch.data import DataError, StreamSamples
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import prepare
from largebatch.run.train_quietly import train_quietly
from tests.multiprocess.pool import RankPool
from tests.unit.composing import compose_run

COUNT = 50


def sample(number: int, epoch: int) -> tuple[Tensor, int]:
    inputs = torch.sin(torch.arange(8.0) * (number + 1))
    return inputs, int(inputs.sum() > 0) + 2 * (epoch % 2)


class Shuffled(IterableDataset[Any]):
    """A shuffle buffer over files, as streaming libraries have it: global generators, a worker's share, passes."""

    def __init__(self, count: int = COUNT) -> None:
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        mine = range(self.count) if worker is None else range(worker.id, self.count, worker.num_workers)
        buffer: list[int] = []
        for number in mine:
            buffer.append(number)
            if len(buffer) == 7:
                yield sample(buffer.pop(random.randrange(7)), self.epoch)
        while buffer:
            yield sample(buffer.pop(random.randrange(len(buffer))), self.epoch)


class Skipping(Shuffled):
    """In order, with a `skip` as datasets.IterableDataset has it; it counts what was read."""

    read: ClassVar[list[int]] = []

    def __init__(self, count: int = COUNT, first: int = 0) -> None:
        super().__init__(count)
        self.first = first

    def skip(self, number: int) -> Skipping:
        return Skipping(self.count, self.first + number)

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.first, self.count):
            self.read.append(number)
            yield sample(number, self.epoch)


class Unseeded(Shuffled):
    def __iter__(self) -> Iterator[Any]:
        private = random.Random(os.urandom(8))
        return (sample(private.randrange(1000), 0) for _ in range(self.count))


class ByRank(Shuffled):
    """Gives each rank a share of its own, as `split_by_node` does."""

    def __iter__(self) -> Iterator[Any]:
        return (sample(number, 0) for number in range(int(os.environ.get("RANK", "0")), self.count, 2))


class Failing(Shuffled):
    def __iter__(self) -> Iterator[Any]:
        yield from (sample(number, 0) for number in range(20))
        raise OSError("shard 3 is gone")


def config(name: str, *overrides: str) -> DictConfig:
    composed = compose_run(
        "data=synthetic", "data.num_classes=4", "model=mlp", "model.in_features=8", "model.hidden=[6]", "logger=none",
        "precision=fp64", "batch.total=12", "batch.micro=2", "schedule.warmup=0ep", "length=96samples",
        "data.stream.samples=50", "data.stream.kept=10", "data.stream.validation=9", *overrides,
    )  # fmt: skip
    with open_dict(composed):
        composed.data.train = {"_target_": f"{__name__}.{name}"}
        composed.data.validation = {"_target_": f"{__name__}.Shuffled"}
    return composed


def trained(folder: str, name: str, *overrides: str, steps: int | None = None) -> list[Tensor]:
    """The weights after all steps, or of a run that is stopped after some."""
    count = [0]

    def stop() -> bool:
        count[0] += 1
        return steps is not None and count[0] >= steps

    one = train_quietly(config(name, *overrides), Path(folder), stop=stop)
    return [part.detach().clone() for part in one.model.parameters()]


def test_a_stream_trains_alike_on_any_ranks_and_workers_and_goes_on_on_others(
    ranks: Callable[[int], RankPool], tmp_path: Path
):
    whole = ranks(1).run(trained, str(tmp_path / "whole"), "Shuffled")[0]
    for world_size, workers in ((2, 0), (3, 2)):
        folder = str(tmp_path / f"{world_size}")
        for weights in ranks(world_size).run(trained, folder, "Shuffled", f"data.num_workers={workers}"):
            torch.testing.assert_close(weights, whole, rtol=1e-11, atol=1e-14)
    folder = str(tmp_path / "stopped")
    ranks(3).run(trained, folder, "Shuffled", "data.num_workers=2", steps=5)  # in the second pass
    (saved,) = (one for one in (Path(folder) / "checkpoints").iterdir() if one.name.startswith("step_"))
    assert 4 < int(saved.name.removeprefix("step_")) < 8
    resumed = ranks(2).run(trained, folder, "Shuffled", "resume=auto")[0]
    torch.testing.assert_close(resumed, whole, rtol=1e-11, atol=1e-14)


def test_ranks_that_get_shares_of_their_own_are_refused(ranks: Callable[[int], RankPool], tmp_path: Path):
    with pytest.raises(Exception, match="samples of the training set"):
        ranks(2).run(trained, str(tmp_path / "run"), "ByRank")


def test_positions_are_samples_of_passes_whatever_was_read_before():
    stream = StreamSamples(Shuffled(), num_samples=COUNT, kept=4)
    straight = [stream[position] for position in range(2 * COUNT)]
    assert (
        sorted(int(one[1] > 1) for one in straight) == [0] * COUNT + [1] * COUNT
    )  # the second pass has its own labels
    first = sorted(tuple(one[0].tolist()) for one in straight[:COUNT])
    assert first == sorted(tuple(sample(number, 0)[0].tolist()) for number in range(COUNT))
    again = StreamSamples(Shuffled(), num_samples=COUNT, kept=4)
    for position in (70, 30, 31, 99, 0, 49):
        assert torch.equal(again[position][0], straight[position][0])
        assert again[position][1] == straight[position][1]


def test_skip_begins_inside_a_pass_without_reading_what_lies_before():
    stream = StreamSamples(Skipping(), num_samples=COUNT, kept=4)
    assert stream.skips_ahead
    Skipping.read.clear()
    assert torch.equal(stream[COUNT + 40][0], sample(40, 1)[0])
    assert stream[COUNT + 41][1] == sample(41, 1)[1]
    assert Skipping.read == [40, 41]


def test_a_stream_of_datasets_is_the_same_in_workers_and_by_skip():
    datasets = pytest.importorskip("datasets")
    stored = datasets.Dataset.from_dict({"input_ids": [[n, n + 1] for n in range(40)], "labels": list(range(40))})
    stream = StreamSamples(
        stored.to_iterable_dataset(num_shards=4).shuffle(seed=3, buffer_size=8), num_samples=40, kept=10
    )
    passes = [[stream[number * 40 + place]["labels"] for place in range(40)] for number in range(2)]
    assert [sorted(one) for one in passes] == [list(range(40))] * 2
    assert passes[0] != passes[1]
    assert stream.skips_ahead
    assert [stream[place]["labels"] for place in (75, 20, 21)] == [passes[1][35], passes[0][20], passes[0][21]]


def test_an_end_before_the_end_of_the_pass_and_an_error_are_told():
    with pytest.raises(DataError, match=r"The stream ended after 50 samples of pass 0.*Give data\.stream\.samples=50"):
        StreamSamples(Shuffled(), num_samples=60, kept=4)[55]
    stream = StreamSamples(Failing(), num_samples=60, kept=4)
    for _ in range(2):  # nothing goes on with other samples behind it
        with pytest.raises(
            DataError, match=r"Sample 20 of pass 0 of the stream cannot be read: OSError: shard 3 is gone"
        ):
            stream[25]


@pytest.mark.parametrize(
    ("name", "overrides", "fact"),
    [
        ("Unseeded", (), "the stream gives other samples when it is read again"),
        ("Shuffled", ("data.stream.samples=null",), "give data.stream.samples, the samples of a pass"),
        ("Shuffled", ("data.limit=5",), "data.limit=5: data.train is a stream"),
        ("Shuffled", ("data.label_noise=0.5",), "data.label_noise=0.5: data.train is a stream"),
        ("Shuffled", ("data.on_bad_sample=skip",), "a stream that fails does not go on"),
        ("Shuffled", ("data.stream.kept=51", "data.stream.samples=60"), "ended after 50 samples of pass 0"),
    ],
)
def test_what_a_stream_cannot_hold_is_refused(name: str, overrides: tuple[str, ...], fact: str, in_a_folder: None):
    with pytest.raises(ConfigError, match=fact):
        prepare(config(name, *overrides), {})


def test_the_run_says_what_holds_before_its_first_step(in_a_folder: None):
    prepared = prepare(config("Shuffled", "data.num_workers=2"), {})
    assert prepared.numbers.num_samples == COUNT
    told = "\n".join(prepared.notes)
    assert "does not shuffle; a pass is 50 samples. Each of 2 workers of every rank reads all of it" in told
    assert "a resume reads what was seen again" in told
    assert "the first 9 samples of a stream, kept in memory" in told
