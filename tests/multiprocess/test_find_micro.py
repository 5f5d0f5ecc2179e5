"""Micro-batches are tried on all ranks together: one answer, that of the rank with the least memory, and no trace."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from largebatch.experiments.find_micro.settings import FindMicroConfig, Sizes, even_sizes, pinned_sizes, sizes_of
from largebatch.experiments.find_micro.tries import Try, run_tries
from largebatch.experiments.measure.weights import Weights, open_weights
from largebatch.run.prepare import Prepared, prepare
from tests.multiprocess.test_memory_shortage import SAID, _Backward
from tests.restless import bits
from tests.unit.composing import compose_run
from tests.unit.run.test_predicted_memory import prepared_run, real_peak

ROOM, BATCH = 5, 34
COMMON = ("logger=none", "data=digits", "data.limit=160", "batch.max_micro=null")


class Cramped(nn.Sequential):
    """Batch norm and dropout, and on the last rank room for five samples at once."""

    def __init__(self, place: str) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 10))
        self.place, self.room = place, BATCH

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = super().forward(inputs)
        if len(inputs) <= self.room:
            return outputs
        if self.place == "forward":
            raise RuntimeError(SAID)
        return _Backward.apply(outputs)  # type: ignore[no-any-return]


def options(**given: Any) -> FindMicroConfig:
    return FindMicroConfig(
        **{"memory": "1GiB", "headroom": 0.0, "start": 4, "warmup": 2, "steps": 3, "near": 0.02} | given
    )


def opened(function: Callable[[Prepared, Weights], Any], *overrides: str, place: str | None = None) -> Any:
    config = compose_run(*COMMON, *overrides)
    if place is not None:
        OmegaConf.update(config, "model", {"_target_": f"{__name__}.Cramped", "place": place}, merge=False)
    prepared = prepare(config, os.environ)
    with open_weights(prepared, None) as weights:
        return function(prepared, weights)


def tried(prepared: Prepared, weights: Weights, **given: Any) -> list[Try]:
    asked = options(**given)
    sizes: Sizes = sizes_of(prepared, asked, is_on_gpu=False)
    return run_tries(prepared, weights, asked, sizes)


def values(module: nn.Module) -> dict[str, Any]:
    """All bits; a wrapper may put buffers of the same bits in the place of the module's own."""
    found = bits(module)
    return found | {"tensors": [(name, held) for name, _, held in found["tensors"]]}


def of_cramped_ranks(place: str, key: str) -> tuple[list[dict[str, Any]], list[str]]:
    def run(prepared: Prepared, weights: Weights) -> tuple[list[dict[str, Any]], list[str]]:
        if weights.runtime.rank == weights.runtime.world_size - 1:
            weights.module.room = ROOM
        before = values(weights.module)
        tries = tried(prepared, weights)
        after = values(weights.module)
        return [asdict(one) for one in tries], [name for name in before if after[name] != before[name]]

    pinned = ("batch.micro=4",) if key == "micro" else ()
    return opened(run, f"batch.total={BATCH}", "optimizer=adamw", *pinned, place=place)


@pytest.mark.fault(56)
@pytest.mark.parametrize(
    ("world", "place", "key"),
    [(1, "forward", "max_micro"), (2, "backward", "max_micro"), (2, "forward", "micro"), (3, "backward", "max_micro")],
)
def test_one_rank_that_runs_short_sets_the_answer_of_all_and_nothing_is_left_of_the_tries(ranks, world, place, key):
    sizes = pinned_sizes(BATCH, world) if key == "micro" else even_sizes(-(-BATCH // world))
    found = ranks(world).run(of_cramped_ranks, place, key)
    for tries, changed in found:
        assert changed == []
        assert tries == found[0][0], "also speeds and peaks are those of all ranks"
        fitting = [one["size"] for one in tries if not one["short"]]
        assert max(fitting) == max(one for one in sizes if one <= ROOM)
        misfits = [one for one in tries if one["short"]]
        assert misfits
        assert all(one["short"] == (world - 1,) and one["speeds"] == () for one in misfits)
        assert all(len(one["speeds"]) == 3 for one in tries if not one["short"])


def of_a_cramped_update() -> list[dict[str, Any]]:
    def step(self: Any, *_: Any) -> None:
        if os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError(SAID)

    def run(prepared: Prepared, weights: Weights) -> list[dict[str, Any]]:
        with patch.object(torch.optim.SGD, "step", step):
            return [asdict(one) for one in tried(prepared, weights)]

    return opened(run, "batch.total=8", "model=linear")


def test_a_rank_without_room_for_the_update_leaves_no_other_waiting(ranks):
    for tries in ranks(2).run(of_a_cramped_update):
        assert [(one["size"], one["short"]) for one in tries] == [(4, (1,)), (2, (1,)), (1, (1,))]


WIDE = ("model=mlp", "optimizer=adamw", "batch.total=24")


def peak_of_real_run(size: int, world_size: int) -> int:
    return real_peak(prepared_run(*WIDE, f"batch.max_micro={size}", world_size=world_size))


def of_a_budget(limit: int) -> list[dict[str, Any]]:
    return opened(lambda *given: [asdict(one) for one in tried(*given, memory=f"{limit / 1000}kB")], *WIDE)


@pytest.mark.parametrize("world", [1, 2])
def test_the_answer_to_a_budget_of_tensors_is_that_of_real_runs_whose_tensors_were_counted(ranks, world):
    share = 24 // world
    fits, over = next((one, two) for one, two in zip(even_sizes(share), even_sizes(share)[1:], strict=False) if one > 5)
    peaks = {size: max(ranks(world).run(peak_of_real_run, size, world)) for size in (fits, over)}
    for tries in ranks(world).run(of_a_budget, (peaks[fits] + peaks[over]) // 2):
        fitting = {one["size"]: max(one["peaks"]) for one in tries if not one["short"]}
        assert max(fitting) == fits
        assert fitting[fits] == pytest.approx(peaks[fits], rel=0.02)  # as predictions, for the same reasons
        assert over in {one["size"] for one in tries}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_tries_that_were_broken_off(error):
    def run(prepared: Prepared, weights: Weights) -> tuple[Any, Any]:
        calls: list[int] = []

        def fail(*_: Any) -> None:
            calls.append(1)
            if len(calls) == 40:  # of 12 passes each, and each rehearsed: in the second step that is taken
                raise error

        weights.module.register_forward_hook(fail)
        before = values(weights.module)
        with pytest.raises(error):
            tried(prepared, weights, start=1)
        return before, values(weights.module)

    before, after = opened(run, "batch.total=12", "optimizer=adamw", "model=convnet", "model.width=2")
    assert after == before
