"""A loss that compares all samples of the global batch: its gradient does not depend on micro-batches and ranks."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.data import paired_views, random_classification
from largebatch.distributed.runtime import Runtime
from largebatch.losses.coupled import InfoNCE
from largebatch.models import MLP, TwoViews
from largebatch.training.loop import train
from tests.multiprocess.counting import count_collectives
from tests.multiprocess.made_run import made_run
from tests.multiprocess.test_contract import (
    FACTORIZATIONS,
    SEED,
    STEPS,
    Recorder,
    bitwise,
    lr_at,
    plan_of,
    relative_error,
)
from tests.sums import assert_same_sums

TEMPERATURE = 0.3


@dataclass(frozen=True)
class Case:
    """One training problem; `max_micro` and `micro` say how it is cut."""

    kind: str
    batch: int
    precision: str = "fp64"
    max_micro: int | None = None
    micro: int | None = None
    steps: int = STEPS
    ordered: bool = False
    coupled: bool = True


@dataclass(frozen=True)
class SameClass:
    """A loss of the user's own, that needs the targets of the whole batch: cosines should tell who is of one class."""

    unit = "sample"
    fixed_units = True
    coupled = True

    def loss_per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        unit = outputs / outputs.norm(dim=1, keepdim=True)
        alike = (targets[:, None] == targets[None, :]).to(unit.dtype)
        return (alike - unit @ unit.T).square().mean(dim=1)

    def units_per_sample(self, targets: Tensor) -> Tensor:
        return torch.ones(len(targets), dtype=torch.int64)

    def correct_per_sample(self, outputs: Tensor, targets: Tensor) -> None:
        return


class OfMicroBatches:
    """The common defect: the same loss, but each micro-batch by itself."""

    def __init__(self, loss: Any) -> None:
        self.unit, self.fixed_units = loss.unit, loss.fixed_units
        self.loss_per_sample, self.units_per_sample = loss.loss_per_sample, loss.units_per_sample


def model_and_data(kind: str) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(stream_key(SEED, "initialisation"))
    pairs = paired_views(50, (16,), "train", noise=1.0)
    if kind == "same class":
        return MLP(16, 5, hidden=[12]), SameClass(), random_classification(50, 5, (16,), "train")
    if kind == "random":
        encoder = nn.Sequential(
            nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(12, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 6),
        )  # fmt: skip
        return TwoViews(encoder), InfoNCE(TEMPERATURE), pairs
    if kind == "spectral":
        inner = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 12))
        return TwoViews(nn.Sequential(inner, nn.ReLU(), nn.Linear(12, 6))), InfoNCE(TEMPERATURE), pairs
    negatives = "other_view" if kind == "other view" else "all"
    return TwoViews(MLP(16, 6, hidden=[12])), InfoNCE(TEMPERATURE, negatives), pairs


def trajectory(case: Case) -> dict[str, Any]:
    """Train `case` on the ranks of this world with the package's own loop."""
    with Runtime.open(precision=case.precision) as runtime:
        model, loss, data = model_and_data(case.kind)
        plan = plan_of(case.batch, runtime.world_size, micro=case.micro, max_micro=case.max_micro)
        recorder = Recorder()
        run = made_run(
            runtime,
            model,
            loss if case.coupled else OfMicroBatches(loss),
            torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3),
            plan,
            data,
            lr_at,
            case.steps,
            seed=SEED,
            ordered=case.ordered,
            log_every=1,
            observers=[recorder],
        )
        status = train(run)
        run.gradient.statistics.merge()
        return {
            "status": status,
            "weights": [parameter.detach().double().numpy() for parameter in run.module.parameters()],
            "buffers": {name: buffer.double().numpy() for name, buffer in run.module.named_buffers()},
            "losses": recorder.losses,
        }


def written_out(kind: str, representations: Tensor, targets: Tensor, *, detached: bool = False) -> Tensor:
    """Mean loss of a batch, from the papers: Chen et al. 2020, equation 1; Radford et al. 2021, figure 3."""
    if kind == "same class":
        return SameClass().loss_per_sample(representations, targets).mean()
    unit = representations / representations.norm(dim=2, keepdim=True)
    if kind == "other view":
        logits = unit[:, 0] @ unit[:, 1].T / TEMPERATURE
        diagonal = logits.diagonal()
        return ((logits.logsumexp(0) - diagonal) + (logits.logsumexp(1) - diagonal)).mean() / 2
    views = unit.flatten(0, 1)  # 2k and 2k + 1 are the views of sample k
    candidates = views.detach() if detached else views
    similar = (views @ candidates.T / TEMPERATURE).exp()
    i = torch.arange(len(views))
    others = similar * (i[:, None] != i[None, :])
    return -(similar[i, i ^ 1] / others.sum(dim=1)).log().mean()


@functools.cache
def reference(case: Case, *, detached: bool = False) -> dict[str, Any]:
    """The same training in plain torch: the graphs of all micro-batches are kept, and there is one backward pass.

    Without `micro` the whole batch goes through the model at once.
    """
    model, _, data = model_and_data(case.kind)
    model = model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3)
    order, losses = SampleOrder(len(data), SEED), []
    for step in range(case.steps):
        position = step * case.batch
        optimizer.param_groups[0]["lr"] = lr_at(position)
        inputs, targets = data.fetch(order.ids(position, case.batch))
        parts = []
        for index, part in enumerate(inputs.double().split(case.micro or case.batch)):
            torch.manual_seed(stream_key(stream_key(SEED, "forward", position), "micro-batch", index))
            parts.append(model(part))
        value = written_out(case.kind, torch.cat(parts), targets, detached=detached)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return {
        "weights": [parameter.detach().numpy() for parameter in model.parameters()],
        "buffers": {name: buffer.double().numpy() for name, buffer in model.named_buffers()},
        "losses": losses,
    }


def assert_same_training(results: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    for result in results:
        assert result["status"] == "finished"
        assert relative_error(result["weights"], expected["weights"]) < 1e-12
        np.testing.assert_allclose(result["losses"], expected["losses"], rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "world_size", "batch", "max_micro"),
    [("all views", *each) for each in FACTORIZATIONS]
    + [(kind, *each) for kind in ("other view", "same class") for each in ((1, 24, 5), (2, 10, None), (3, 23, 3))],
)
def test_every_factorization_equals_one_big_batch_in_float64(ranks, kind, world_size, batch, max_micro):
    results = ranks(world_size).run(trajectory, Case(kind, batch, max_micro=max_micro))
    assert_same_training(results, reference(Case(kind, batch)))


@pytest.mark.parametrize(("world_size", "batch"), [(1, 22), (2, 24), (3, 22)])
def test_both_passes_draw_the_same_dropout_and_batch_norm_counts_a_micro_batch_once(ranks, world_size, batch):
    """As if the graphs of all micro-batches were kept: weights, losses, and running statistics of both kinds."""
    case = Case("random", batch, micro=6)
    results, expected = ranks(world_size).run(trajectory, case), reference(case)
    assert_same_training(results, expected)
    for result in results:
        for name, value in expected["buffers"].items():
            assert_same_sums(result["buffers"][name], value, terms=max(1.0, np.abs(value).max()), name=name)
    assert expected["buffers"]["encoder.1.num_batches_tracked"] == STEPS * 4


def test_a_model_that_changes_its_buffers_computes_the_same_in_both_passes():
    """Spectral norm improves its singular vectors in every forward pass, and the output depends on them."""
    case = Case("spectral", 24, micro=5)
    found, expected = trajectory(case), reference(case)
    assert_same_training([found], expected)
    for name, value in expected["buffers"].items():
        assert_same_sums(found["buffers"][name], value, terms=1.0, digits=1e-10, name=name)  # of unit vectors


def test_an_ordered_reduction_gives_bitwise_equal_weights_on_any_world(ranks):
    case = Case("random", 23, precision="fp32", micro=5, ordered=True)
    one = ranks(1).run(trajectory, case)[0]
    assert one["status"] == "finished"
    for world_size in (2, 3):
        for result in ranks(world_size).run(trajectory, case):
            assert bitwise(result["weights"], one["weights"])
            np.testing.assert_allclose(result["losses"], one["losses"], rtol=1e-12)


@pytest.mark.parametrize(("world_size", "max_micro"), [(1, 5), (3, 3)])
def test_two_float32_steps_are_each_within_1e_6_of_the_float64_one(ranks, world_size, max_micro):
    case = Case("all views", 24, precision="fp32", max_micro=max_micro, steps=2)
    expected = reference(case)
    for result in ranks(world_size).run(trajectory, case):
        assert relative_error(result["weights"], expected["weights"]) < 2e-6


def test_negatives_of_the_micro_batch_alone_would_be_another_training(ranks):
    """The claims above have content: neither smaller sets of negatives nor negatives without gradient pass them."""
    case = Case("all views", 24, max_micro=5, coupled=False)
    whole = reference(case)["weights"]
    assert relative_error(ranks(2).run(trajectory, case)[0]["weights"], whole) > 1e-2
    assert relative_error(reference(case, detached=True)["weights"], whole) > 1e-2


def collectives(case: Case) -> dict[str, Any]:
    """The collectives of a training, and the number of elements of its gradient."""
    calls, result = count_collectives(trajectory, case)
    return {"calls": calls, "elements": sum(weight.size for weight in result["weights"])}


@pytest.mark.parametrize("max_micro", [None, 4, 1])
def test_a_step_makes_one_gradient_all_reduce_and_gathers_representations_and_targets(ranks, max_micro):
    case = {steps: Case("all views", 24, max_micro=max_micro, steps=steps) for steps in (2, 5)}
    for few, many in zip(*(ranks(2).run(collectives, one) for one in case.values()), strict=True):
        size, own = many["elements"], 12
        assert few["calls"]["all_reduce", size] == 2
        assert many["calls"] - few["calls"] == {
            **{("all_reduce", n): 3 for n in (size, 4 + 2)},
            **{("all_gather", n): 3 for n in (own * 2 * 6, own)},  # representations, targets
            ("all_reduce", 24 * 2 * 6): 3,  # derivatives: gloo makes an all-reduce of a reduce-scatter
        }


class Watched(nn.Module):
    """Counts the bytes that the model's own graph keeps alive, and their peak."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.alive = self.peak = 0

    def forward(self, inputs: Tensor) -> Tensor:
        watched = self

        class Held:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
                watched.alive += self.size
                watched.peak = max(watched.peak, watched.alive)

            def __del__(self) -> None:
                watched.alive -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            return self.inner(inputs)


def peak_live_bytes(batch: int) -> int:
    data = paired_views(256, (16,), "train")
    model = Watched(TwoViews(MLP(16, 5, hidden=[12])))
    runtime = Runtime.open()
    plan = BatchPlan.solve(global_batch_size=batch, world_size=1, max_micro_batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(made_run(runtime, model, InfoNCE(), optimizer, plan, data, lambda _: 0.1, 2))
    runtime.close()
    assert model.alive == 0
    return model.peak


def test_the_activations_in_memory_do_not_depend_on_the_global_batch():
    assert peak_live_bytes(4) == peak_live_bytes(256) > 0


class NoTensor(MLP):
    """Returns its representations in a tuple."""

    def forward(self, inputs: Tensor) -> Any:
        return (super().forward(inputs),)


def test_a_model_without_a_tensor_of_representations_is_refused():
    with Runtime.open() as runtime:
        plan = BatchPlan.solve(global_batch_size=4, world_size=1)
        model = NoTensor(16, 5, hidden=[4])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = made_run(
            runtime, model, SameClass(), optimizer, plan, random_classification(8, 5, (16,), "train"), lambda _: 0.1, 1
        )
        with pytest.raises(ValueError, match="returned tuple for 4 samples"):
            train(run)


def test_a_batch_of_one_sample_has_no_negatives_and_a_loss_of_zero():
    found = trajectory(Case("all views", 1, steps=1))
    assert found["losses"] == [0.0]
    assert not any(math.isnan(value) for weight in found["weights"] for value in weight.flat)
