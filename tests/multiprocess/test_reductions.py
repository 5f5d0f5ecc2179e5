"""A reduction of one's own fits in without a change of the loop or of `GlobalGradient`; so do loops of one's own."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import MicroBatchLoader, random_classification
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.exact_batch_norm import ExactBatchNorm
from largebatch.gradient.options import accumulate_gradients
from largebatch.gradient.step import Measures, Step
from largebatch.losses import CrossEntropy
from largebatch.training.loop import Observer, Run, train
from tests.multiprocess.made_run import made_run

SAMPLES, BATCH, MICRO, STEPS = 60, 20, 3, 3

pytestmark = pytest.mark.quick


class Gathered:
    """Every rank collects the gradients of all ranks and adds them up."""

    scale = 1

    def __init__(self, runtime: Runtime, model: nn.Module) -> None:
        self.model, self.world_size = runtime.unwrap(model), runtime.world_size
        self.passes: list[tuple[int, bool]] = []

    def begin(self, plan: BatchPlan) -> None: ...

    @contextlib.contextmanager
    def one_pass(self, index: int, *, is_last: bool) -> Any:
        yield
        self.passes.append((index, is_last))

    def finish(self) -> None:
        for parameter in self.model.parameters() if self.world_size > 1 else ():
            assert parameter.grad is not None
            parts = [torch.empty_like(parameter.grad) for _ in range(self.world_size)]
            dist.all_gather(parts, parameter.grad)
            parameter.grad = torch.stack(parts).sum(dim=0)


class Norms(Observer):
    """What noise scales are made of."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def after_step(self, run: Run, report: Any) -> None:
        self.found.append(report.norms.result())


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def trained(*, is_own: bool) -> dict[str, Any]:
    runtime = Runtime.open(precision="fp64")
    try:
        model, data, norms = net(), random_classification(SAMPLES, 3, (6,), "train"), Norms()
        plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=MICRO)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        options: dict[str, Any] = {"norms_every": 1, "observers": [norms]}
        if is_own:
            options["reduction"] = lambda runtime, model, clock: Gathered(runtime, model)
        run = made_run(runtime, model, CrossEntropy(), optimizer, plan, data, lambda _: 0.1, STEPS, **options)
        status = train(run)
        state = {name: value.double().numpy() for name, value in run.module.state_dict().items()}
        passes = getattr(run.gradient.reduction, "passes", [])
        return {"status": status, "state": state, "norms": norms.found, "passes": passes}
    finally:
        runtime.close()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_reduction_of_ones_own_trains_as_ours(ranks, world_size):
    (ours,) = ranks(1).run(trained, is_own=False)
    for found in ranks(world_size).run(trained, is_own=True):
        assert found["status"] == "finished"
        for name, value in ours["state"].items():
            assert abs(value - found["state"][name]).max() <= 1e-12, name
        for one, other in zip(ours["norms"], found["norms"], strict=True):
            assert one[0] == pytest.approx(other[0], rel=1e-12)
        assert sum(is_last for _, is_last in found["passes"]) == STEPS


class Asks(Observer):
    """For the same measures in every step."""

    def __init__(self, measures: Measures) -> None:
        self.measures = measures

    def asks(self, step: Step) -> Measures:
        return self.measures


class AsOnceWritten:
    """Observes, but says not what it asks for."""

    def on_start(self, run: Run) -> None: ...

    def after_step(self, run: Run, report: Any) -> None: ...

    def on_end(self, run: Run, status: str) -> None: ...


class Writes(Observer):
    """Sets a field that the run does not have."""

    def on_start(self, run: Run) -> None:
        run.needs_every_loss = True


class ReadsUnasked(Observer):
    """Reads a loss that it did not ask for."""

    def after_step(self, run: Run, report: Any) -> None:
        assert report.mean_loss


def errors_of(cases: list[dict[str, Any]]) -> list[str]:
    runtime = Runtime.open(precision="fp64")
    try:
        return [error_of(runtime, **case) for case in cases]
    finally:
        runtime.close()


def error_of(runtime: Runtime, measures: Measures = Measures.NONE, observer: Any = None, **options: Any) -> str:
    model, data = net(), random_classification(SAMPLES, 3, (6,), "train")
    plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=1, micro_batch_size=MICRO)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options["observers"] = [Asks(measures), *([observer()] if observer else ())]
    if options.pop("is_own", False):
        options["reduction"] = lambda runtime, model, clock: Gathered(runtime, model)
    try:
        return train(made_run(runtime, model, CrossEntropy(), optimizer, plan, data, lambda _: 0.1, 2, **options))
    except (ValueError, TypeError, AttributeError) as error:
        return str(error)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"is_own": True, "ordered": True}, "batch.reduction=ordered: does not go with make_run(reduction=...)"),
    ({"is_own": True, "compression": "bf16"}, "make_run(reduction=...): it sends the gradients itself"),
    ({"is_own": True, "recompute_every": 1}, "nothing says when a rank's own part is complete in it"),
    ({"compression": "bf16"}, "precision.gradient_compression=bf16: does not go with precision.compute=fp64"),
    ({"compression": "bf17"}, "compression='bf17': use one of none, fp16, bf16"),
    ({"recompute_every": 0}, "recompute_every=0: use 1 or more steps"),
    ({"exact_batch_norm": True, "measures": Measures.NORMS}, "Measures.NORMS: does not go with batch_norm=exact"),
    ({"observer": AsOnceWritten}, "AsOnceWritten has no asks, which the loop calls. Let it inherit"),
    ({"observer": ReadsUnasked}, "report.mean_loss of step 1: the loss is summed"),
    ({"observer": Writes}, "run.needs_every_loss: Run has no such field"),
]


def test_a_program_is_told_what_does_not_go_together(ranks):
    (found,) = ranks(1).run(errors_of, [case for case, _ in REFUSED])
    for error, (case, expected) in zip(found, REFUSED, strict=True):
        assert expected in error, case


def own_loop(*, exact: bool) -> dict[str, Any]:
    runtime = Runtime.open(precision="fp64")
    try:
        module, data = net(), random_classification(SAMPLES, 3, (6,), "train")
        model = runtime.wrap(module)
        norms = ExactBatchNorm(runtime, runtime.unwrap(model)) if exact else None
        plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=MICRO)
        loader = MicroBatchLoader(data, SampleOrder(SAMPLES, 0), plan, runtime.rank)
        loss_sum = accumulate_gradients(
            runtime, model, CrossEntropy(), loader.micro_batches(0, 1),
            plan=plan, num_units=BATCH, random_key=0, norms=norms,
        )  # fmt: skip
        gradient = torch.cat([one.grad.flatten() for one in module.parameters() if one.grad is not None])
        return {"gradient": gradient.numpy(), "loss": runtime.sum([float(loss_sum)])[0]}
    finally:
        runtime.close()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("exact", [False, True])
def test_a_loop_of_ones_own_gets_the_gradient_of_the_mean_loss(ranks, world_size, exact):
    model, data = net().double(), random_classification(SAMPLES, 3, (6,), "train")
    inputs, targets = data.fetch(SampleOrder(SAMPLES, 0).ids(0, BATCH))
    size = BATCH if exact else MICRO
    cuts = [slice(at, at + size) for at in range(0, BATCH, size)]
    loss = sum(nn.functional.cross_entropy(model(inputs[cut].double()), targets[cut], reduction="sum") for cut in cuts)
    (loss / BATCH).backward()
    expected = torch.cat([one.grad.flatten() for one in model.parameters()]).numpy()
    for found in ranks(world_size).run(own_loop, exact=exact):
        assert found["loss"] == pytest.approx(float(loss), rel=1e-12)
        assert abs(found["gradient"] - expected).max() <= 1e-12
