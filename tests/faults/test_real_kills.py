"""Kills of real jobs under each launcher: what comes out is, bit for bit, the run that nothing happened to."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign, Way, draw_strikes, rows_without_times
from tests.faults.forks import train_in_forks
from tests.faults.oracle import assert_same_run
from tests.faults.test_loading import OWN

# Items that draw random numbers, dropout, the last batch of an epoch ragged; checkpoints at every fifth step.
RUN = (
    "data=digits", "model=mlp", "model.hidden=[8]", *OWN, "batch.total=24", "schedule.warmup=5steps", "logger=none",
    "observers.progress=false", "observers.metrics.every=3", "observers.evaluation.every=40steps",
    "observers.checkpoint.every=5steps", "observers.ledger.enabled=true", "observers.ledger.parameters_every=1",
    "observers.replicas.every=4",
)  # fmt: skip
# Its steps are far more than all strikes of a campaign let it take.
LENGTH = 800


def assert_unharmed(folder: Path, golden: Path, *, num_steps: int, tolerance: float = 0.0) -> None:
    """Ledger, weights and optimizer bit for bit; of the rows each number within a tolerance, absolute or relative.

    An evaluation adds up over ranks: on another number of them its last digits are others.
    """
    assert_same_run(folder, golden, num_steps=num_steps)
    ours, theirs = rows_without_times(folder), rows_without_times(golden)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one == (pytest.approx(other, rel=tolerance, abs=tolerance) if tolerance else other)


@pytest.mark.fault(1)
@pytest.mark.fault(6, "SIGTERM to the launcher", "same step on all ranks, saved")
@pytest.mark.fault(12, "Ctrl-C", "one request to stop, no traceback")
@pytest.mark.fault(13, "launcher killed", "no rank alive after 5 s")
def test_every_launcher_goes_on_after_a_kill_of_a_rank_or_of_itself_and_after_signals(tmp_path: Path):
    num_steps, loading = 200, {"ranks": 2, "workers": 2}
    group = (*RUN, f"length={num_steps}steps")
    golden = train_in_forks(tmp_path / "golden", *group, ranks=2)
    assert golden.codes == (0, 0), golden.output
    campaign = Campaign(tmp_path / "run", group)
    ended = campaign.strike(Way("torchrun", **loading, background=True), "rank killed", after=8, rank=1)
    assert ended.code == 1
    assert "LostRankError: Rank 1 left the run or does not answer: rank 0 waited in step" in ended.output
    assert "Signal 9 (SIGKILL) received" in ended.output, "as torchrun tells it"
    campaign.strike(Way("torchrun", **loading), "launcher killed, rank stopped", after=2, rank=1)
    ended = campaign.strike(Way("torchrun.sh", **loading), "Ctrl-C", after=2)
    assert ended.code == 130
    assert "resume=auto" in ended.output
    assert "Traceback" not in ended.output
    ended = campaign.strike(Way("accelerate", **loading), "SIGTERM to what was started", after=2)
    assert "stopped" in ended.output
    assert "resume=auto" in ended.output
    ended = train_in_forks(tmp_path / "run", *group, "resume=auto", "data.num_workers=2", ranks=2)
    assert ended.codes == (0, 0), ended.output
    assert_unharmed(tmp_path / "run", tmp_path / "golden", num_steps=num_steps)


# With a sum in order any number of ranks has the same bits. Otherwise a run keeps its number.
ELASTIC = [
    Way(launcher, ranks, workers, background=bool((ranks + workers) % 2))
    for launcher, most in (("plain", 1), ("torchrun", 4), ("accelerate", 3), ("torchrun.sh", 2))
    for ranks in range(1 if launcher == "plain" else 2, most + 1)
    for workers in (0, 1, 2)
]
FIXED = [
    [Way(launcher, ranks, workers, background) for launcher in launchers for workers in (0, 2)]
    for ranks, launchers, background in (
        (1, ("plain", "torchrun"), True),
        (2, ("torchrun.sh", "accelerate"), False),
        (3, ("torchrun", "accelerate"), True),
        (4, ("torchrun",), False),
    )
]


@pytest.mark.fault(60)
@pytest.mark.soak
@pytest.mark.parametrize(
    ("ways", "options", "num_kills", "seed"),
    [
        pytest.param(ELASTIC, ("batch.reduction=ordered",), 24, 1, id="any ranks, ordered"),
        *(pytest.param(ways, (), 9, 2 + at, id=f"{ways[0].ranks} ranks") for at, ways in enumerate(FIXED)),
    ],
)
def test_sixty_real_kills_end_with_the_uninterrupted_run(
    ways: list[Way], options: tuple[str, ...], num_kills: int, seed: int, tmp_path: Path
):
    group = (*RUN, f"length={LENGTH}steps", *options)
    Campaign(tmp_path / "golden", group).finish(ways[0])
    campaign = Campaign(tmp_path / "run", group)
    print()
    for way, name, when in draw_strikes(random.Random(seed), ways, num_kills):
        campaign.strike(way, name, **when)
        print(campaign.hits[-1], flush=True)
    campaign.finish(ways[-1])
    tolerance = 1e-6 if ways == ELASTIC else 0.0
    assert_unharmed(tmp_path / "run", tmp_path / "golden", num_steps=LENGTH, tolerance=tolerance)
