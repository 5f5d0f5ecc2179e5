"""What the textbook's experiment on accumulation says of several processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from largebatch.experiments.textbook.experiment import train_on_rank
from tests.multiprocess.pool import RankPool
from tests.unit.composing import compose_run

RUN = ("length=3steps", "batch.total=8", "batch.micro=1", "data=synthetic", "data.train.num_samples=40", "model=linear")


def test_the_ordered_sum_of_two_processes_is_that_of_one_bit_for_bit(ranks: Callable[[int], RankPool], tmp_path: Path):
    paths = []
    for world_size in (1, 2):
        config = OmegaConf.to_container(compose_run(*RUN, "batch.reduction=ordered", "schedule.warmup=0ep"))
        paths += ranks(world_size).run(train_on_rank, config, str(tmp_path / str(world_size)), ())
    one, first, second = paths
    assert (one == first).all()
    assert (one == second).all()
    assert len(np.unique(one, axis=0)) == 4
