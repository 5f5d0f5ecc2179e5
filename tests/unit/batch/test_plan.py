"""The plan of one step: every sample once, shared evenly, and errors whose remedies work."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from largebatch.batch.plan import BatchPlan, MicroBatch

pytestmark = pytest.mark.quick

fixed = settings(derandomize=True, deadline=None, max_examples=150)
sizes = st.integers(1, 5000)
ranks = st.integers(1, 64)


def check_plan(plan: BatchPlan, *, global_batch_size: int, world_size: int) -> None:
    """What holds for every plan: the ranks' micro-batches, one after another, are the samples of the global batch."""
    parts = [part for rank in range(world_size) for part in plan.micro_batches(rank)]
    assert (plan.global_batch_size, plan.world_size) == (global_batch_size, world_size)
    covered = [sample for part in parts for sample in range(part.offset, part.offset + part.size)]
    assert covered == list(range(global_batch_size))
    assert [part.index for part in parts] == list(range(len(parts)))
    assert [part.size for part in parts] == list(plan.micro_batch_sizes)
    assert [plan.rank_batch_size(rank) for rank in range(world_size)] == [
        sum(part.size for part in plan.micro_batches(rank)) for rank in range(world_size)
    ]
    assert plan.grad_accum_steps == max(len(plan.micro_batches(rank)) for rank in range(world_size))
    assert plan.max_micro_batch_size == max(part.size for part in parts)


def spread(numbers: list[int] | tuple[int, ...]) -> int:
    return max(numbers) - min(numbers)


@fixed
@given(sizes, ranks, st.one_of(st.none(), st.integers(1, 300)))
def test_a_solved_plan_covers_the_batch_evenly_and_stays_under_the_cap(total: int, world_size: int, cap: int | None):
    assume(total >= world_size)
    plan = BatchPlan.solve(global_batch_size=total, world_size=world_size, max_micro_batch_size=cap)
    check_plan(plan, global_batch_size=total, world_size=world_size)
    shares = [plan.rank_batch_size(rank) for rank in range(world_size)]
    assert spread(shares) <= 1
    assert shares == sorted(shares, reverse=True)
    for rank, share in enumerate(shares):
        parts = [part.size for part in plan.micro_batches(rank)]
        assert spread(parts) <= 1
        # As few passes as the cap allows.
        assert len(parts) == (1 if cap is None else math.ceil(share / cap))
    assert cap is None or plan.max_micro_batch_size <= cap


@fixed
@given(sizes, ranks, st.integers(1, 300))
def test_a_pinned_plan_covers_the_batch_and_shares_the_micro_batches_evenly(total: int, world_size: int, micro: int):
    assume(math.ceil(total / micro) >= world_size)
    plan = BatchPlan.pinned(global_batch_size=total, world_size=world_size, micro_batch_size=micro)
    check_plan(plan, global_batch_size=total, world_size=world_size)
    assert set(plan.micro_batch_sizes[:-1]) <= {micro}
    assert 1 <= plan.micro_batch_sizes[-1] <= micro
    assert spread([len(plan.micro_batches(rank)) for rank in range(world_size)]) <= 1


@fixed
@given(sizes, st.integers(1, 300), st.data())
def test_pinned_boundaries_do_not_depend_on_the_number_of_ranks(total: int, micro: int, data: st.DataObject):
    count = math.ceil(total / micro)
    worlds = [1, data.draw(st.integers(1, min(count, 64))), min(count, 64)]
    plans = [BatchPlan.pinned(global_batch_size=total, world_size=world, micro_batch_size=micro) for world in worlds]
    assert len({plan.micro_batch_sizes for plan in plans}) == 1
    assert {
        part.offset % micro for plan in plans for rank in range(plan.world_size) for part in plan.micro_batches(rank)
    } == {0}


def test_a_plan_small_enough_to_check_by_hand():
    plan = BatchPlan.solve(global_batch_size=11, world_size=3, max_micro_batch_size=2)
    # Shares 4, 4, 3; at most two samples at a time.
    assert plan.micro_batch_sizes == (2, 2, 2, 2, 2, 1)
    assert plan.owners == (0, 0, 1, 1, 2, 2)
    assert plan.micro_batches(2) == (MicroBatch(4, 8, 2), MicroBatch(5, 10, 1))
    pinned = BatchPlan.pinned(global_batch_size=11, world_size=2, micro_batch_size=4)
    assert (pinned.micro_batch_sizes, pinned.owners) == ((4, 4, 3), (0, 0, 1))


def test_a_rank_may_have_a_single_sample():
    plan = BatchPlan.solve(global_batch_size=8, world_size=8, max_micro_batch_size=64)
    assert plan.micro_batch_sizes == (1,) * 8
    assert plan.owners == tuple(range(8))


@pytest.mark.bad_input("a batch smaller than the ranks")
@fixed
@given(st.integers(1, 200), st.integers(2, 300))
def test_the_remedies_for_too_few_samples_work_and_are_sharp(total: int, world_size: int):
    assume(total < world_size)
    with pytest.raises(ValueError, match=f"global batch of {total} .* {world_size} ranks") as caught:
        BatchPlan.solve(global_batch_size=total, world_size=world_size)
    most_ranks, least_batch = map(
        int, re.search(r"at most (\d+) ranks or a batch of at least (\d+)\.$", str(caught.value)).groups()
    )
    BatchPlan.solve(global_batch_size=total, world_size=most_ranks)
    BatchPlan.solve(global_batch_size=least_batch, world_size=world_size)
    with pytest.raises(ValueError, match="cannot be shared"):
        BatchPlan.solve(global_batch_size=total, world_size=most_ranks + 1)
    with pytest.raises(ValueError, match="cannot be shared"):
        BatchPlan.solve(global_batch_size=least_batch - 1, world_size=world_size)


@pytest.mark.bad_input("a batch that ranks and pinned micro-batches do not divide")
@fixed
@given(st.integers(1, 500), st.integers(2, 40), st.integers(1, 400))
def test_the_remedies_for_too_few_micro_batches_work_and_are_sharp(total: int, world_size: int, micro: int):
    count = math.ceil(total / micro)
    assume(count < world_size)

    def works(total: int = total, world_size: int = world_size, micro: int = micro) -> bool:
        try:
            BatchPlan.pinned(global_batch_size=total, world_size=world_size, micro_batch_size=micro)
        except ValueError:
            return False
        return True

    with pytest.raises(
        ValueError, match=f"batch of {total} in micro-batches of {micro} makes {count}, fewer"
    ) as caught:
        BatchPlan.pinned(global_batch_size=total, world_size=world_size, micro_batch_size=micro)
    message = str(caught.value)
    most_ranks, least_batch = map(int, re.search(r"at most (\d+) ranks?, a batch of at least (\d+)", message).groups())
    assert works(world_size=most_ranks)
    assert not works(world_size=most_ranks + 1)
    assert works(total=least_batch)
    assert not works(total=least_batch - 1)
    smaller = re.search(r"or micro-batches of at most (\d+)\.$", message)
    # A smaller micro-batch helps unless there are fewer samples than ranks.
    assert (smaller is not None) == (total >= world_size)
    if smaller is not None:
        assert works(micro=int(smaller[1]))
        assert not works(micro=int(smaller[1]) + 1)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (BatchPlan.solve, {"global_batch_size": 0, "world_size": 1}, "global_batch_size=0"),
        (BatchPlan.solve, {"global_batch_size": 8, "world_size": 0}, "world_size=0"),
        (BatchPlan.solve, {"global_batch_size": 8, "world_size": -1}, "world_size=-1"),
        (
            BatchPlan.solve,
            {"global_batch_size": 8, "world_size": 1, "max_micro_batch_size": 0},
            "max_micro_batch_size=0",
        ),
        (BatchPlan.pinned, {"global_batch_size": 8, "world_size": 1, "micro_batch_size": 0}, "micro_batch_size=0"),
        (BatchPlan.pinned, {"global_batch_size": -8, "world_size": 1, "micro_batch_size": 2}, "global_batch_size=-8"),
    ],
)
def test_counts_below_one_are_refused_by_name_and_value(make, arguments: dict[str, int], message: str):
    with pytest.raises(ValueError, match=f"^{message}: must be at least 1"):
        make(**arguments)


@pytest.mark.parametrize(
    ("sizes_", "owners"),
    [((2, 3), (0, 1)), ((2, 2), (0, 0)), ((4, 0), (0, 1)), ((2, 2), (1, 0)), ((2, 2), (0, 2))],
    ids=["wrong sum", "idle rank", "empty micro-batch", "owners fall", "no such rank"],
)
def test_a_plan_that_is_not_one_cannot_be_built(sizes_: tuple[int, ...], owners: tuple[int, ...]):
    with pytest.raises(AssertionError):
        BatchPlan(4, 2, sizes_, owners)
