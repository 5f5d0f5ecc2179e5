"""The invariance contract, levels 1 and 2: world size and accumulation change the plan, never the result."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.batch.random_keys import stream_key
from largebatch.batch.schedule import Schedule
from largebatch.data import (
    ArrayDataset,
    Augmentation,
    MicroBatchLoader,
    TokenWindows,
    masked_tokens,
    random_classification,
)
from largebatch.distributed.runtime import Runtime
from largebatch.losses import CrossEntropy, NextToken
from largebatch.models import GPT, MLP, ConvNet
from largebatch.training.loop import Observer, Run, train
from tests.multiprocess.counting import count_collectives
from tests.multiprocess.made_run import made_run

pytestmark = pytest.mark.quick

STEPS = 6  # into the third epoch, past the warm-up
SEED = 3


@dataclass(frozen=True)
class Case:
    """One training problem; `max_micro` and `micro` say how it is cut."""

    kind: str
    batch: int
    precision: str = "fp64"
    max_micro: int | None = None
    micro: int | None = None
    steps: int = STEPS
    clip_norm: float | None = None
    ordered: bool = False
    ramp: tuple[tuple[int, int], ...] = ()  # (milestone, batch from there on)


def model_and_data(kind: str) -> tuple[nn.Module, Any, Any, Augmentation | None]:
    torch.manual_seed(stream_key(SEED, "initialisation"))
    if kind == "mlp":
        return MLP(16, 5, hidden=[12]), CrossEntropy(), random_classification(50, 5, (16,), "train"), None
    if kind == "tokens":
        model = GPT(11, 8, num_layers=1, num_heads=2, width=16)
        return model, NextToken(), masked_tokens(50, 8, 11, "train"), None
    if kind == "masked":
        return GPT(11, 8, num_layers=1, num_heads=2, width=16), NextToken(), tokens_with_masked_shares(), None
    if kind == "stream":
        tokens = np.random.default_rng(0).integers(0, 11, 50 * 8 + 1)
        model = GPT(11, 8, num_layers=1, num_heads=2, width=16)
        return model, NextToken(), TokenWindows(tokens, context_length=8, vocab_size=11), None
    images = random_classification(50, 5, (1, 8, 8), "train")
    model = nn.Sequential(ConvNet(5, 1, width=4).blocks, nn.Dropout(0.3), nn.Flatten(), nn.LazyLinear(5))
    model(torch.zeros(2, 1, 8, 8))
    return model, CrossEntropy(), images, Augmentation(SEED, crop_padding=1, flip=True, cutout=2)


def tokens_with_masked_shares() -> ArrayDataset:
    """In the first batch of 24 the samples at places 0 to 2 and 12 to 23 have no valid token: the others have some."""
    data = masked_tokens(48, 8, 11, "train")
    first_batch = torch.from_numpy(SampleOrder(48, SEED).ids(0, 24))
    data.targets[first_batch[[*range(3), *range(12, 24)]]] = -100
    return data


def lr_at(samples_seen: int) -> float:
    return 0.1 * Schedule(total_samples=2000, warmup_samples=100)(samples_seen)


class RecordingLoader:
    """Passes micro-batches on and remembers which samples they held."""

    def __init__(self, loader: MicroBatchLoader) -> None:
        self.loader = loader
        self.seen: list[tuple[int, int, list[int]]] = []

    def micro_batches(self, samples_seen: int, num_steps: int) -> Any:
        for batch in self.loader.micro_batches(samples_seen, num_steps):
            self.seen.append((batch.samples_seen, batch.index, batch.ids.tolist()))
            yield batch


class Recorder(Observer):
    def __init__(self) -> None:
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.norms: list[float] = []

    def after_step(self, run: Run, report: Any) -> None:
        self.lrs.append(report.taken.lr)
        self.losses.append(report.mean_loss)
        if report.grad_norm is not None:
            self.norms.append(float(report.grad_norm))


def plan_of(batch: int, world_size: int, *, micro: int | None, max_micro: int | None) -> BatchPlan:
    size = {"global_batch_size": batch, "world_size": world_size}
    if micro:
        return BatchPlan.pinned(**size, micro_batch_size=micro)
    return BatchPlan.solve(**size, max_micro_batch_size=max_micro)


def trajectory(case: Case) -> dict[str, Any]:
    """Train `case` on the ranks of this world with the package's own loop."""
    with Runtime.open(precision=case.precision) as runtime:
        model, loss, data, augment = model_and_data(case.kind)
        sizes = (case.batch, *(size for _, size in case.ramp))
        cut = {"micro": case.micro, "max_micro": case.max_micro}
        plan = BatchRamp(
            tuple(plan_of(size, runtime.world_size, **cut) for size in sizes),
            tuple(milestone for milestone, _ in case.ramp),
        )
        loader = RecordingLoader(
            MicroBatchLoader(data, SampleOrder(len(data), SEED), plan, runtime.rank, augment=augment)
        )
        recorder = Recorder()
        run = made_run(
            runtime,
            model,
            loss,
            torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3),
            plan,
            data,
            lr_at,
            case.steps,
            seed=SEED,
            clip_norm=case.clip_norm,
            ordered=case.ordered,
            log_every=1,
            observers=[recorder],
            loader=loader,
        )
        status = train(run)
        return {
            "status": status,
            "weights": [parameter.detach().double().numpy() for parameter in run.module.parameters()],
            "seen": loader.seen,
            "lrs": recorder.lrs,
            "losses": recorder.losses,
            "norms": recorder.norms,
        }


def reference(case: Case) -> tuple[list[np.ndarray], list[float]]:
    """The same training as one big batch per step in plain torch, with the mean taken over the whole batch."""
    model, _, data, _ = model_and_data(case.kind)
    model = model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3)
    order, losses, position = SampleOrder(len(data), SEED), [], 0
    for _ in range(case.steps):
        batch = [case.batch, *(size for milestone, size in case.ramp if milestone <= position)][-1]
        optimizer.param_groups[0]["lr"] = lr_at(position)
        inputs, targets = data.fetch(order.ids(position, batch))
        position += batch
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        value = F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        value.backward()
        if case.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), case.clip_norm)
        optimizer.step()
        losses.append(value.item())
    return [parameter.detach().numpy() for parameter in model.parameters()], losses


def relative_error(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs, strict=True))


def ids_of_steps(results: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Position of a step -> its sample ids over all ranks, in the order of the global batch."""
    parts = sorted(part for result in results for part in result["seen"])
    steps: dict[int, list[int]] = {}
    for position, _, ids in parts:
        steps.setdefault(position, []).extend(ids)
    return steps


# 23 and 10 divide by none of the worlds' micro-batches; 50 is the whole set (batch gradient descent).
FACTORIZATIONS = [(1, 24, None), (1, 24, 5), (2, 24, 12), (2, 10, 2), (3, 23, None), (3, 50, 3), (4, 24, 2)]


@pytest.mark.fault(36, "batch not divisible by the ranks", "uneven split, exact weights")
@pytest.mark.parametrize(
    ("kind", "world_size", "batch", "max_micro"),
    [("mlp", *each) for each in FACTORIZATIONS]
    + [(kind, *each) for kind in ("tokens", "stream") for each in ((1, 24, 5), (2, 10, None), (3, 23, 3))],
)
def test_every_factorization_equals_one_big_batch_in_float64(ranks, kind, world_size, batch, max_micro):
    case = Case(kind, batch, max_micro=max_micro, steps=20 if batch == 23 else STEPS)
    results = ranks(world_size).run(trajectory, case)
    weights, losses = reference(case)
    for result in results:
        assert relative_error(result["weights"], weights) < 1e-12
        np.testing.assert_allclose(result["losses"], losses, rtol=1e-12)


@pytest.mark.parametrize(("world_size", "max_micro"), [(1, 3), (2, 3), (2, None), (3, 3)])
@pytest.mark.parametrize("ordered", [False, True])
def test_micro_batches_and_ranks_without_a_valid_token_have_no_say_in_the_mean(ranks, world_size, max_micro, ordered):
    """Among them the micro-batch whose backward pass starts the all-reduce, and every one of the last ranks'."""
    data, units = tokens_with_masked_shares(), NextToken().units_per_sample
    case = Case("masked", 24, max_micro=max_micro, ordered=ordered)
    results = ranks(world_size).run(trajectory, case)
    weights, losses = reference(case)
    for result in results:
        assert relative_error(result["weights"], weights) < 1e-12
        np.testing.assert_allclose(result["losses"], losses, rtol=1e-12)
    counts = [[int(units(data.targets[ids]).sum()) for at, _, ids in result["seen"] if at == 0] for result in results]
    assert world_size == 1 or sum(counts[-1]) == 0, "a whole rank's share is masked"
    assert max_micro != 3 or (counts[0][0] == 0 < sum(counts[0])), "a whole micro-batch is masked"


@pytest.mark.other_processor
@pytest.mark.parametrize(("world_size", "batch", "max_micro"), [(1, 24, 5), (3, 23, 3)])
def test_one_float32_step_is_within_1e_6_of_the_float64_one(ranks, world_size, batch, max_micro):
    case = Case("mlp", batch, precision="fp32", max_micro=max_micro, steps=2)
    weights, _ = reference(case)
    for result in ranks(world_size).run(trajectory, case):
        assert relative_error(result["weights"], weights) < 1e-6


@pytest.mark.parametrize(("world_size", "max_micro"), [(1, None), (3, 4)])
def test_clipping_sees_the_global_gradient(ranks, world_size, max_micro):
    case = Case("mlp", 24, max_micro=max_micro, clip_norm=0.05)
    weights, _ = reference(case)
    results = ranks(world_size).run(trajectory, case)
    assert relative_error(results[0]["weights"], weights) < 1e-12
    assert min(results[0]["norms"]) > 0.05, "the norm is reported before clipping, and this case must clip"


@pytest.mark.parametrize(("world_size", "max_micro"), [(1, 7), (2, 3), (4, None)])
def test_a_step_consumes_the_same_samples_at_the_same_rate_on_any_world(ranks, world_size, max_micro):
    case = Case("mlp", 23, max_micro=max_micro)
    results = ranks(world_size).run(trajectory, case)
    order = SampleOrder(50, SEED)
    assert ids_of_steps(results) == {23 * step: order.ids(23 * step, 23).tolist() for step in range(STEPS)}
    assert all(result["lrs"] == [lr_at(23 * step) for step in range(STEPS)] for result in results)


@pytest.mark.fault(44)
@pytest.mark.parametrize("batch", [24, pytest.param(22, marks=pytest.mark.other_processor)])
def test_pinned_micro_batches_make_batch_norm_dropout_and_augmentation_agree_on_any_world(ranks, batch):
    case = Case("batch norm", batch, micro=6)
    one = ranks(1).run(trajectory, case)[0]
    for world_size in (2, 3):
        for result in ranks(world_size).run(trajectory, case):
            assert relative_error(result["weights"], one["weights"]) < 1e-12
            np.testing.assert_allclose(result["losses"], one["losses"], rtol=1e-12)


def test_without_pinning_batch_norm_depends_on_the_cut():
    """The claim above has content: another cut of the same batch gives other batch norm statistics."""
    whole = trajectory(Case("batch norm", 24, micro=24, steps=3))
    parts = trajectory(Case("batch norm", 24, micro=6, steps=3))
    assert relative_error(parts["weights"], whole["weights"]) > 1e-4


RAMP, RAMP_STEPS = ((60, 33), (130, 7), (150, 48)), 8


@pytest.mark.parametrize("kind", ["mlp", "masked"])
@pytest.mark.parametrize(("world_size", "max_micro"), [(1, 10), (2, None), (3, 4)])
def test_a_ramp_equals_one_big_batch_per_step_on_any_factorization(ranks, kind, world_size, max_micro):
    case = Case(kind, 24, max_micro=max_micro, ramp=RAMP, steps=RAMP_STEPS)
    weights, losses = reference(case)
    results = ranks(world_size).run(trajectory, case)
    for result in results:
        assert relative_error(result["weights"], weights) < 1e-12
    np.testing.assert_allclose(results[0]["losses"], losses, rtol=1e-12)
    (alone,) = ranks(1).run(trajectory, Case(kind, 24, ramp=RAMP, steps=RAMP_STEPS))
    assert ids_of_steps(results) == ids_of_steps([alone])
    sizes = [len(ids) for ids in ids_of_steps(results).values()]
    assert sizes == [24, 24, 24, 33, 33, 7, 7, 48]


def test_a_ramp_keeps_pinned_batch_norm_and_dropout_on_any_number_of_ranks(ranks):
    case = Case("random", 24, micro=6, ramp=((60, 33), (130, 18)))
    alone, two, three = (ranks(world_size).run(trajectory, case)[0] for world_size in (1, 2, 3))
    for other in (two, three):
        assert relative_error(other["weights"], alone["weights"]) < 1e-12


def test_an_ordered_reduction_is_bitwise_equal_through_a_ramp(ranks):
    case = Case("mlp", 24, precision="fp32", micro=4, ordered=True, ramp=((60, 33), (130, 14), (170, 48)))
    alone, two, three = (ranks(world_size).run(trajectory, case)[0] for world_size in (1, 2, 3))
    assert bitwise(two["weights"], alone["weights"])
    assert bitwise(three["weights"], alone["weights"])


def bitwise(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("kind", "steps", "worlds"), [("batch norm", 20, (2, 3, 4)), ("tokens", STEPS, (2, 3))])
def test_an_ordered_reduction_gives_bitwise_equal_weights_after_20_steps_on_any_world(ranks, kind, steps, worlds):
    """Level 3 of the contract, in float32: 5 ragged micro-batches shared by 1, 2, 3 and 4 ranks; clipping included."""
    case = Case(kind, 23, precision="fp32", micro=5, steps=steps, clip_norm=0.5, ordered=True)
    one = ranks(1).run(trajectory, case)[0]
    assert one["status"] == "finished"
    for world_size in worlds:
        for result in ranks(world_size).run(trajectory, case):
            assert bitwise(result["weights"], one["weights"])
            np.testing.assert_allclose(result["losses"], one["losses"], rtol=1e-12)


def test_without_order_the_last_bits_depend_on_the_number_of_ranks(ranks):
    """The claim above has content."""
    case = Case("batch norm", 23, precision="fp32", micro=5, clip_norm=0.5)
    one, three = (ranks(world_size).run(trajectory, case)[0]["weights"] for world_size in (1, 3))
    assert not bitwise(three, one)
    assert relative_error(three, one) < 1e-2


@pytest.mark.parametrize("world_size", [1, 3])
def test_an_ordered_reduction_is_the_gradient_of_one_big_batch(ranks, world_size):
    case = Case("tokens", 23, micro=3, ordered=True)
    weights, _ = reference(case)
    for result in ranks(world_size).run(trajectory, case):
        assert relative_error(result["weights"], weights) < 1e-12


def collectives(case: Case) -> dict[str, Any]:
    """The collectives of a training, and the number of elements of its gradient."""
    calls, result = count_collectives(trajectory, case)
    return {"calls": calls, "elements": sum(weight.size for weight in result["weights"])}


@pytest.mark.parametrize("max_micro", [None, 4, 1])
def test_a_step_makes_one_gradient_all_reduce_whatever_the_accumulation(ranks, max_micro):
    """Beside it only the agreement (loss, stop, save, time, a step per rank), and what DDP broadcasts until its buckets
    are built, at step 2.
    """
    two, five = (ranks(2).run(collectives, Case("mlp", 24, max_micro=max_micro, steps=steps)) for steps in (2, 5))
    for few, many in zip(two, five, strict=True):
        size = many["elements"]
        assert few["calls"][("all_reduce", size)] == few["calls"][("all_reduce", 4 + 2)] == 2
        assert many["calls"] - few["calls"] == {("all_reduce", size): 3, ("all_reduce", 4 + 2): 3}


@pytest.mark.parametrize(("kind", "counts"), [("stream", 0), ("tokens", 3)])
def test_only_masked_tokens_are_counted_over_ranks(ranks, kind, counts):
    """Every token of a stream is a target: their number is known, and no step waits for other ranks to tell it."""
    few, many = (ranks(2).run(collectives, Case(kind, 24, max_micro=3, steps=steps))[0]["calls"] for steps in (2, 5))
    assert (many - few)["all_reduce", 8] == counts, "a number for each of 8 micro-batches"


class DivergesOnRankOne(nn.Module):
    """Its loss is not a number at the fourth step, on one rank only."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP(16, 5, hidden=[12])
        self.calls = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        broken = self.calls == 4 and torch.distributed.get_rank() == 1
        return self.inner(inputs) * (float("nan") if broken else 1.0)


def train_to_the_end(model_class: str, stop_rank: int | None) -> tuple[str, int]:
    with Runtime.open() as runtime:
        torch.manual_seed(0)
        model = DivergesOnRankOne() if model_class == "diverges" else MLP(16, 5, hidden=[12])
        data = random_classification(50, 5, (16,), "train")
        plan = BatchPlan.solve(global_batch_size=10, world_size=runtime.world_size)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = made_run(runtime, model, CrossEntropy(), optimizer, plan, data, lambda _: 0.1, 12, log_every=1)
        run.stop_requested = lambda: runtime.rank == stop_rank and run.progress.step >= 5
        return train(run), run.progress.step


@pytest.mark.fault(22)
def test_a_nan_on_one_rank_ends_the_run_on_all_ranks_at_the_same_step(ranks):
    assert ranks(2).run(train_to_the_end, "diverges", None) == [("diverged", 5), ("diverged", 5)]


def test_a_stop_request_on_one_rank_stops_all_ranks_after_the_same_step(ranks):
    outcomes = ranks(2).run(train_to_the_end, "mlp", 1)
    assert outcomes[0] == outcomes[1] == ("stopped", 6)


def skip_a_step_on_rank_one() -> str:
    with Runtime.open() as runtime:
        model = MLP(16, 5, hidden=[12])
        data = random_classification(50, 5, (16,), "train")
        plan = BatchPlan.solve(global_batch_size=10, world_size=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = made_run(runtime, model, CrossEntropy(), optimizer, plan, data, lambda _: 0.1, 8, log_every=1)
        if runtime.rank == 1:
            run.progress.step += 1
        try:
            train(run)
        except RuntimeError as error:
            return str(error)
        return "nothing was noticed"


def test_ranks_at_different_steps_are_noticed(ranks):
    for rank, message in enumerate(ranks(2).run(skip_a_step_on_rank_one)):
        assert "Steps done: rank 1 has 2; rank 0 has 1 (no majority: either may be at fault)" in message, rank


def test_the_model_is_the_same_with_and_without_observers():
    case = Case("mlp", 24, max_micro=7)
    observed = trajectory(case)["weights"]
    model, loss, data, _ = model_and_data("mlp")
    runtime = Runtime.open(precision="fp64")
    plan = BatchPlan.solve(global_batch_size=24, world_size=1, max_micro_batch_size=7)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3)
    train(made_run(runtime, model, loss, optimizer, plan, copy.copy(data), lr_at, STEPS, seed=SEED))
    runtime.close()
    for ours, theirs in zip(model.parameters(), observed, strict=True):
        assert np.array_equal(ours.detach().numpy(), theirs)


def test_peak_memory_does_not_depend_on_the_global_batch():
    """Tensors alive at any time during a step, for 1 and for 64 micro-batches of the same size."""
    peaks = [peak_live_bytes(batch) for batch in (4, 256)]
    assert peaks[1] == peaks[0]


def peak_live_bytes(batch: int) -> int:
    """Largest sum of saved activations of one forward pass, over a step."""
    data = ArrayDataset(torch.randn(256, 16), torch.zeros(256, dtype=torch.int64))
    model = MLP(16, 5, hidden=[12])
    runtime = Runtime.open()
    plan = BatchPlan.solve(global_batch_size=batch, world_size=1, max_micro_batch_size=4)
    run = made_run(
        runtime, model, CrossEntropy(), torch.optim.SGD(model.parameters(), lr=0.1), plan, data, lambda _: 0.1, 1
    )
    alive = peak = 0

    class Held:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal alive, peak
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            alive += self.size
            peak = max(peak, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        train(run)
    runtime.close()
    return peak
