"""Warmup and decay as closed forms of the samples seen."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.batch.decays import Cooldown, InverseSqrt, Restarts
from largebatch.batch.schedule import DECAYS, Schedule

pytestmark = pytest.mark.quick

T, W = 1000, 200
SHAPES = {
    # p in [0, 1] -> factor, each written differently from the code.
    "constant": lambda p: 1.0,
    "linear": lambda p: (T - (W + p * (T - W))) / (T - W),
    "cosine": lambda p: math.cos(math.pi * p / 2) ** 2,
    "quarter_cosine": lambda p: math.cos(math.pi * p / 2),
    "polynomial": lambda p: math.exp(3 * math.log1p(-p)) if p < 1 else 0.0,
}


def curve(progress: float) -> float:
    return 1 - progress**2


FUNCTIONS = {  # of T - W = 800 samples after the warmup; None where the factor does not only fall
    "wsd": lambda times: Cooldown(160 * times),
    "wsd_sqrt": lambda times: Cooldown(160 * times, "sqrt"),
    "inverse_sqrt": lambda times: InverseSqrt(W * times),
    "own": lambda times: lambda since, whole: curve(since / whole),
    "restarts": lambda times: Restarts(200 * times, growth=1.5),
}


def schedule(decay: Any = "cosine", **changes: Any) -> Schedule:
    values: dict[str, Any] = {"total_samples": T, "warmup_samples": W, "decay": decay, "power": 3.0}
    if decay == "step":
        values["step_samples"] = (500, 800)
    return Schedule(**(values | changes))


@pytest.mark.parametrize("end_factor", [0.0, 0.25])
@pytest.mark.parametrize("decay", SHAPES)
def test_a_decay_is_its_closed_form_after_the_warmup(decay: str, end_factor: float):
    factor = schedule(decay, end_factor=end_factor)
    for samples in (W, W + 1, 300, 400, 600, 777, 999, T):
        shape = SHAPES[decay]((samples - W) / (T - W))
        # Of numbers up to 1, a few roundings of 1e-16 each.
        assert factor(samples) == pytest.approx(end_factor + (1 - end_factor) * shape, abs=1e-14)


def test_decays_have_their_known_values_half_way():
    half = (T + W) // 2
    assert schedule("linear")(half) == pytest.approx(0.5, abs=1e-15)
    assert schedule("cosine")(half) == pytest.approx(0.5, abs=1e-15)
    assert schedule("polynomial", power=2.0)(half) == pytest.approx(0.25, abs=1e-15)
    assert schedule("constant")(half) == 1


@pytest.mark.parametrize("decay", [name for name in SHAPES if name != "constant"])
def test_after_the_last_sample_the_factor_stays_at_its_end(decay: str):
    factor = schedule(decay, end_factor=0.1)
    assert factor(T) == factor(T + 1) == factor(5 * T) == pytest.approx(0.1, abs=1e-15)


@pytest.mark.parametrize("decay", [*DECAYS, *(make(1) for make in FUNCTIONS.values())])
def test_warmup_starts_where_it_says_and_meets_the_decay_without_a_jump(decay: Any):
    factor = schedule(decay, warmup_start_factor=0.25)
    assert factor(0) == 0.25
    assert factor(W // 2) == 0.625
    assert factor(W - 1) == pytest.approx(1 - 0.75 / W, abs=1e-15)
    assert factor(W) == 1
    # The steepest shape here falls by 3 / 800 per sample.
    assert 1 - 3 / (T - W) <= factor(W + 1) <= 1


def test_without_warmup_the_run_starts_at_the_peak():
    assert schedule(warmup_samples=0, warmup_start_factor=0.5)(0) == 1


def test_gradual_warmup_is_goyals_formula():
    # lr(t) = eta + (k eta - eta) t / T_w, for 8192 images on the base of 0.1 at 256.
    eta, k, warmup, per_epoch = 0.1, 32, 5 * 1_281_167, 1_281_167
    factor = Schedule(
        total_samples=90 * per_epoch,
        warmup_samples=warmup,
        warmup_start_factor=1 / k,
        decay="step",
        step_samples=(30 * per_epoch, 60 * per_epoch, 80 * per_epoch),
    )
    for t in (0, 1, 8192, warmup // 3, warmup - 1, warmup):
        assert k * eta * factor(t) == pytest.approx(eta + (k * eta - eta) * t / warmup, rel=1e-14)
    # The milestones count from sample 0, warmup included.
    for epochs, lr in (
        (6, 3.2),
        (29.9, 3.2),
        (30, 0.32),
        (59.9, 0.32),
        (60, 0.032),
        (79.9, 0.032),
        (80, 0.0032),
        (89, 0.0032),
    ):
        assert k * eta * factor(int(epochs * per_epoch)) == pytest.approx(lr, rel=1e-12)


def test_constant_warmup_stays_at_the_base_rate_and_takes_the_peak_at_once():
    # eta for the first epochs, then k eta: Goyal et al. 2017, section 2.2.
    eta, k = 0.1, 32
    factor = schedule("constant", warmup_start_factor=1 / k, warmup_kind="constant")
    for samples, lr in ((0, 0.1), (1, 0.1), (W - 1, 0.1), (W, 3.2), (W + 1, 3.2), (T, 3.2)):
        assert k * eta * factor(samples) == pytest.approx(lr, rel=1e-14)


@pytest.mark.parametrize("decay", [*DECAYS, *(make(1) for make in FUNCTIONS.values())])
def test_the_kind_of_warmup_changes_nothing_after_it(decay: Any):
    gradual, constant = (
        schedule(decay, warmup_start_factor=0.25, warmup_kind=kind) for kind in ("gradual", "constant")
    )
    assert [constant(samples) for samples in range(W, T)] == [gradual(samples) for samples in range(W, T)]
    assert constant(W // 2) == 0.25 < gradual(W // 2)


def test_mlperfs_warmup_from_zero_moves_nothing_in_the_first_step():
    # lr = lr0 * step / warmup_steps, with 32 samples a step.
    factor = Schedule(total_samples=3200, warmup_samples=640, decay="polynomial", power=2.0)
    assert [factor(32 * step) for step in range(21)] == pytest.approx([step / 20 for step in range(21)], abs=1e-15)
    assert factor(0) == 0


def test_a_step_falls_at_its_milestone_and_not_a_sample_earlier():
    factor = schedule("step", step_gamma=0.5)
    assert [factor(samples) for samples in (200, 499, 500, 799, 800, 5000)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def factors_of(make: Any) -> list[float]:
    """The factors of a scheduler of another library at the steps 0 to 99."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(100):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
def test_wsd_is_that_of_transformers(shape: str):
    def make(optimizer: Any) -> Any:
        kind = {"linear": "linear", "sqrt": "1-sqrt"}[shape]
        from transformers.optimization import get_wsd_schedule

        return get_wsd_schedule(optimizer, 20, 30, num_training_steps=100, decay_type=kind)

    ours = Schedule(total_samples=100, warmup_samples=20, decay=Cooldown(30, shape))
    assert [ours(step) for step in range(100)] == pytest.approx(factors_of(make), abs=1e-12)


@pytest.mark.parametrize("timescale", [20, 7])
def test_inverse_sqrt_is_that_of_transformers(timescale: int):
    def make(optimizer: Any) -> Any:
        from transformers.optimization import get_inverse_sqrt_schedule

        return get_inverse_sqrt_schedule(optimizer, 20, timescale=timescale)

    ours = Schedule(total_samples=100, warmup_samples=20, decay=InverseSqrt(timescale))
    assert [ours(step) for step in range(100)] == pytest.approx(factors_of(make), abs=1e-12)
    assert ours(80) == pytest.approx(0.5 if timescale == 20 else (7 / 67) ** 0.5), "sqrt(warmup / samples)"


@pytest.mark.parametrize("growth", [1, 2])
@pytest.mark.parametrize("end", [0.0, 0.2])
def test_restarts_are_those_of_torch(growth: int, end: float):
    def make(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 15, growth, eta_min=end)

    ours = Schedule(total_samples=100, decay=Restarts(15, growth), end_factor=end)
    assert [ours(step) for step in range(100)] == pytest.approx(factors_of(make), abs=1e-9)


def test_a_last_cycle_that_is_full_ends_low_and_does_not_restart():
    factor = Schedule(total_samples=90, decay=Restarts(30), end_factor=0.1)
    assert (factor(30), factor(60)) == (1, 1)
    assert factor(90) == factor(200) == pytest.approx(0.1)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    decay=st.sampled_from([*DECAYS, InverseSqrt(7), InverseSqrt(10**6), Cooldown(1), Cooldown(2, "sqrt")]),
    total=st.integers(10, 10**12),
    share=st.floats(0, 0.7),
    start=st.floats(0, 1),
    end=st.floats(0, 1),
    places=st.lists(st.floats(0, 1.5), min_size=2, max_size=10),
)
def test_the_factor_stays_in_range_rises_in_the_warmup_and_falls_after_it(
    decay: Any, total: int, share: float, start: float, end: float, places: list[float]
):
    warmup = int(share * total)
    factor = Schedule(
        total_samples=total,
        warmup_samples=warmup,
        warmup_start_factor=start,
        decay=decay,
        end_factor=end,
        step_samples=(total - 1,) if decay == "step" else (),
    )
    curve = [(samples, factor(samples)) for samples in sorted(int(place * total) for place in places)]
    rounding = 1e-12
    assert all(-rounding <= value <= 1 + rounding for _, value in curve)
    for (before, left), (after, right) in itertools.pairwise(curve):
        if after < warmup:
            assert left <= right + rounding
        elif before >= warmup:
            assert left >= right - rounding


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.sampled_from([*DECAYS, *FUNCTIONS]), st.integers(0, 1200), st.integers(1, 1000))
def test_the_curve_keeps_its_shape_when_every_length_grows(decay: str, samples: int, times: int):
    small = schedule(FUNCTIONS[decay](1) if decay in FUNCTIONS else decay, warmup_start_factor=0.3)
    large = schedule(
        FUNCTIONS[decay](times) if decay in FUNCTIONS else decay,
        warmup_start_factor=0.3,
        total_samples=T * times,
        warmup_samples=W * times,
        step_samples=(500 * times, 800 * times) if decay == "step" else (),
    )
    assert large(samples * times) == pytest.approx(small(samples), abs=1e-12)


@pytest.mark.parametrize(
    ("decay", "changes", "message"),
    [
        ("cosin", {}, "decay='cosin' is not a decay. Choose one of constant, linear, cosine, quarter_cosine, step"),
        ("cosine", {"total_samples": 0}, "total_samples=0: a schedule needs at least 1 sample"),
        ("cosine", {"warmup_samples": T}, f"warmup of {T} samples does not fit into a run of {T}.*Shorten"),
        ("cosine", {"warmup_samples": T + 1}, f"warmup of {T + 1} samples does not fit"),
        ("cosine", {"warmup_samples": -1}, "warmup of -1 samples"),
        ("cosine", {"warmup_start_factor": 1.5}, "warmup_start_factor=1.5, end_factor=0.0: both are shares"),
        ("cosine", {"warmup_start_factor": -0.1}, "warmup_start_factor=-0.1"),
        ("cosine", {"end_factor": math.nan}, "end_factor=nan"),
        ("cosine", {"warmup_kind": "sudden"}, "warmup_kind='sudden': choose one of gradual, constant"),
        (
            "cosine",
            {"warmup_kind": "constant", "warmup_samples": 0, "warmup_start_factor": 0.5},
            "warmup_kind=constant has no effect with a warmup of 0 samples",
        ),
        ("cosine", {"warmup_kind": "constant"}, f"the first {W} samples would not change the weights. Start"),
        ("polynomial", {"power": 0.0}, "power=0.0"),
        ("polynomial", {"power": math.nan}, "power=nan"),
        ("polynomial", {"power": math.inf}, "power=inf"),
        ("step", {"step_gamma": 0.0}, "step_gamma=0.0"),
        ("step", {"step_gamma": 1.1}, "step_gamma=1.1"),
        ("step", {"step_samples": (800, 500)}, r"step_samples=\(800, 500\): milestones must be increasing"),
        ("step", {"step_samples": (500, 500)}, r"step_samples=\(500, 500\): milestones must be increasing"),
        ("step", {"step_samples": ()}, "decay=step with 0 milestones.*needs at least one"),
        ("step", {"step_samples": (W, 500)}, f"milestone at {W} samples in a run of {T} with a warmup of {W}: during"),
        ("step", {"step_samples": (500, T)}, f"milestone at {T} samples in a run of {T}.*after the run it has"),
        (Cooldown(801), {}, "cooldown of 801 samples, and 800 come after the warmup: use 1 to 800"),
        (Cooldown(0), {}, "cooldown of 0 samples"),
        (Restarts(800), {}, "cycle of 800 samples, and 800 come after the warmup: nothing would restart"),
        (Restarts(80), {"step_samples": (500,)}, "decay=restarts with 1 milestones"),
        ("cosine", {"step_samples": (500,)}, "decay=cosine with 1 milestones: milestones belong to the decay `step`"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_with_its_numbers(decay: Any, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        schedule(decay, **changes)


@pytest.mark.parametrize("value", [1.5, -0.1, math.nan])
def test_a_function_outside_the_range_is_refused_where_it_is_asked(value: float):
    def wild(since: int, whole: int) -> float:
        return value

    with pytest.raises(ValueError, match=f"wild gives {value} after 300 samples: a factor is a share of the peak"):
        schedule(wild)(300)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cooldown(5, "round"), "cooldown_shape='round': choose one of linear, sqrt"),
        (lambda: Restarts(5, 0.5), "cycle_growth=0.5"),
        (lambda: InverseSqrt(0), "timescale=0 samples"),
    ],
)
def test_a_decay_that_makes_no_sense_is_refused(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
