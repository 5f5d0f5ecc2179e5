"""What `GlobalBatches` gives to each rank, without a process group, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from largebatch.batch import SampleOrder
from largebatch.data import ArrayDataset
from largebatch.gradient import GlobalBatches

SAMPLES = 10


@pytest.fixture(autouse=True)
def _no_launcher(no_launcher: None) -> None: ...


def data() -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64)
    return ArrayDataset(inputs, torch.randint(0, 4, (SAMPLES,), generator=generator))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("options", [{"max_micro": 2}, {"micro": 2}, {}], ids=str)
def test_the_gradients_of_all_ranks_add_up_to_that_of_the_mean(world_size: int, options: dict[str, int]):
    """Against one pass over the samples that the order names, in plain torch."""
    dataset, model = data(), nn.Linear(3, 4).double()
    expected, own = [], [nn.Linear(3, 4).double() for _ in range(world_size)]
    for one in own:
        one.load_state_dict(model.state_dict())
    for position in (0, 7, 14):  # the second batch spans two epochs
        ids = SampleOrder(SAMPLES, 3).ids(position, 7)
        inputs, targets = dataset.fetch(ids)
        expected.append(torch.autograd.grad(F.cross_entropy(model(inputs), targets), model.weight)[0])
    found = [torch.zeros(4, 3).double() for _ in expected]
    for rank, one in enumerate(own):
        stream = GlobalBatches(
            dataset, 7, length="3steps", seed=3, joined="sum", rank=rank, world_size=world_size, **options
        )
        for number, batch in enumerate(stream):
            for micro in batch:
                with micro.sync(one):
                    (F.cross_entropy(one(micro.inputs), micro.targets, reduction="sum") * micro.weight).backward()
            assert one.weight.grad is not None
            found[number] += one.weight.grad
            one.zero_grad()
            assert micro.is_last
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_a_wrapper_averages_so_the_weight_has_the_ranks_in_it():
    streams = [GlobalBatches(data(), 7, joined=joined, rank=1, world_size=2) for joined in ("wrapper", "mean", "sum")]
    assert [next(iter(next(iter(one)))).weight for one in streams] == [2 / 7, 2 / 7, 1 / 7]


def test_position_length_and_ramp_follow_from_samples():
    stream = GlobalBatches(data(), 4, ramp={8: 6, 20: 9}, length=42)
    assert (stream.num_steps, len(stream)) == (6, 6)
    starts = []
    for batch in stream:
        starts.append((batch.samples_seen, batch.size, batch.crosses(SAMPLES)))
        list(batch)
        if batch.samples_seen == 8:
            break
    assert starts == [(0, 4, False), (4, 4, False), (8, 6, True)]
    assert (stream.samples_seen, stream.epoch, len(stream)) == (14, 1.4, 3)
    assert [(batch.samples_seen, len(list(batch))) for batch in stream] == [(14, 1), (20, 1), (29, 1)]
    assert list(stream) == []
    later = GlobalBatches(data(), 4, ramp={8: 6, 20: 9}, length=42, samples_seen=14)
    assert [batch.samples_seen for batch in later if list(batch)] == [14, 20, 29]


def test_a_batch_that_was_left_is_taken_again():
    stream = GlobalBatches(data(), 6, max_micro=2)
    for batch in stream:
        first = next(iter(batch))
        break
    assert stream.samples_seen == 0
    again = [micro.ids.tolist() for micro in next(iter(stream))]
    assert again[0] == first.ids.tolist()
    assert stream.samples_seen == 6


def test_draws_depend_on_the_place_of_the_micro_batch_alone():
    dropout = nn.Dropout(0.5)

    def masks(**options: Any) -> list[list[float]]:
        found = []
        for micro in next(iter(GlobalBatches(data(), 6, micro=3, **options))):
            with micro.random():
                found.append([*dropout(torch.ones(8)).tolist(), np.random.rand()])  # noqa: NPY002
        return found

    torch.manual_seed(1)
    before = torch.get_rng_state()
    alone = masks()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert [*masks(rank=0, world_size=2), *masks(rank=1, world_size=2)] == alone
    assert alone[0] != alone[1]
    assert masks(seed=1) != alone


def test_units_are_what_the_loss_is_divided_by():
    dataset = data()
    dataset.targets[::2] = -100
    batch = next(iter(GlobalBatches(dataset, SAMPLES, units=lambda targets: targets != -100, max_micro=3)))
    with pytest.raises(RuntimeError, match="counted when the first micro-batch"):
        _ = batch.units
    assert {micro.weight for micro in batch} == {1 / 5}
    assert batch.units == 5
    number = GlobalBatches(dataset, SAMPLES, units=lambda targets: int((targets != -100).sum()), max_micro=3)
    assert {micro.weight for micro in next(iter(number))} == {1 / 5}


def test_inputs_and_targets_go_to_the_device():
    micro = next(iter(next(iter(GlobalBatches(data(), 4, device="meta")))))
    assert isinstance(micro.inputs, torch.Tensor)
    assert {micro.inputs.device.type, micro.targets.device.type} == {"meta"}


class Wrapped(nn.Module):
    """As FSDP2 changes a module, and as DDP wraps one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.seen: list[Any] = []
        if how == "fsdp2":
            self.set_requires_gradient_sync = self.seen.append
        else:
            self.no_sync = self._no_sync

    def _no_sync(self) -> Any:
        self.seen.append(False)
        return torch.no_grad()


@pytest.mark.parametrize(("how", "seen"), [("fsdp2", [False, False, True]), ("ddp", [False, False])])
def test_ranks_meet_in_the_last_pass_only(how: str, seen: list[bool]):
    model = Wrapped(how)
    for micro in next(iter(GlobalBatches(data(), 6, max_micro=1, rank=1, world_size=2))):
        with micro.sync(model):
            assert how == "fsdp2" or torch.is_grad_enabled() == micro.is_last
    assert model.seen == seen


def twice(stream: GlobalBatches) -> None:
    batch = next(iter(stream))
    list(batch)
    list(batch)


def left(stream: GlobalBatches) -> None:
    for batch in stream:
        next(iter(batch))


def moved(stream: GlobalBatches) -> None:
    for batch in stream:
        list(batch)
        stream.load_state_dict(stream.state_dict())


@pytest.mark.parametrize(
    ("misuse", "said"),
    [
        (twice, "loaded once. To pass through them again, keep them: micros = list(batch)"),
        (left, "micro-batches of the one at 0 were left"),
        (moved, "set to another position"),
    ],
)
def test_a_gradient_of_part_of_a_batch_is_no_accident(misuse: Callable[[GlobalBatches], None], said: str):
    with pytest.raises(RuntimeError, match=re.escape(said)):
        misuse(GlobalBatches(data(), 6, max_micro=2))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": Stream()}, "map-style"),
        ({"total": 3, "rank": 0, "world_size": 4}, "at least one sample per step. Use at most 3 ranks"),
        ({"total": 6, "micro": 3, "rank": 0, "world_size": 3}, "makes 2, fewer than the 3 ranks"),
        ({"micro": 3, "max_micro": 3}, "Give one of them"),
        ({"ramp": {0: 5}}, "milestones=[0]"),
        ({"length": "3eps"}, "length='3eps': a length is a number and a unit"),
        ({"length": 5}, "length=5: 5 samples do not fill one batch of 6"),
        ({"length": "0.1ep"}, "do not fill one batch of 6"),
        ({"length": -30}, "length=-30: -30 samples do not fill"),
        ({"samples_seen": -1}, "samples_seen=-1"),
        ({"rank": 1}, "rank=1, world_size=None: give both"),
        ({"rank": 2, "world_size": 2}, "ranks count from 0"),
        ({"joined": "ddp"}, "choose one of wrapper, mean, sum"),
        ({"on_bad_sample": "drop"}, "choose 'stop'"),
        ({"num_workers": 2}, "no effect: the data set is in memory"),
        ({"device": "cuda"}, "device=cuda: there is no CUDA GPU here"),
    ],
    ids=lambda one: one if isinstance(one, str) else "+".join(one),
)
def test_wrong_arguments_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=re.escape(said)):
        GlobalBatches(**{"dataset": data(), "total": 6, **options})


@pytest.mark.parametrize("options", [{"total": 3.5}, {"total": "full"}, {"ramp": {5: 2.5}}, {"seed": None}], ids=str)
def test_a_number_is_whole(options: dict[str, Any]):
    with pytest.raises(TypeError, match=r"(total|seed)=.*: give a whole number"):
        GlobalBatches(**{"dataset": data(), "total": 6, **options})


def test_a_launched_rank_without_a_process_group_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="has joined no process group, so it would train on the samples of all"):
        GlobalBatches(data(), 6)
    assert GlobalBatches(data(), 6, rank=1, world_size=2).ramp.plans[0].world_size == 2


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("num_samples", 11)])
def test_a_state_of_other_samples_is_refused(name: str, value: int):
    stream = GlobalBatches(data(), 6)
    with pytest.raises(ValueError, match=f"The state has {name}={value}"):
        stream.load_state_dict({**stream.state_dict(), name: value})


def test_an_endless_stream_has_no_length():
    with pytest.raises(TypeError, match="length='30ep'"):
        len(GlobalBatches(data(), 6))
