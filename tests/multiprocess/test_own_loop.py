"""A loop of one's own over `GlobalBatches` gives the weights of one process on any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, TensorDataset

from largebatch.batch import BatchPlan, SampleOrder, Schedule
from largebatch.data import MicroBatchLoader
from largebatch.distributed.runtime import Runtime
from largebatch.gradient import GlobalBatches
from largebatch.losses import CrossEntropy
from largebatch.optim import ScheduleLR
from largebatch.training.loop import train
from tests.multiprocess.made_run import made_run

SAMPLES, BATCH, MICRO, CLASSES = 53, 23, 4, 3  # nothing divides anything


class Own(Dataset[Any]):
    """Random transforms, dict items as a tokenizer makes them, a third of the labels masked."""

    def __init__(self, *, masks: bool = False, bad: tuple[int, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(1)
        self.features = torch.randn(SAMPLES, 6, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(0, CLASSES, (SAMPLES, 2), generator=generator)
        if masks:
            self.labels[torch.rand(SAMPLES, 2, generator=generator) < 0.4] = -100
        self.bad = bad

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.bad:
            raise OSError("truncated file")
        return {
            "features": self.features[index] + 0.1 * torch.randn(6, dtype=torch.float64),
            "scale": float(1 + np.random.rand()),  # noqa: NPY002
            "labels": self.labels[index],
        }


class Net(nn.Module):
    """Dropout, batch norm, a frozen layer; two predictions per sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.head = nn.Linear(8, 2 * CLASSES)
        self.double()

    def forward(self, features: Tensor, scale: Tensor) -> Tensor:
        return self.head(self.frozen(self.body(features)) * scale[:, None]).unflatten(1, (CLASSES, 2))


def wrapped(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if dist.is_initialized() else model


def averaged(model: nn.Module, by: float) -> None:
    for parameter in model.parameters() if dist.is_initialized() else ():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= by


def own_loop(num_steps: int, *, by_hand: bool = False, state: Any = None, **options: Any) -> tuple[Any, Any, list[Any]]:
    """The loop of the README; returns weights, the state after `num_steps`, and the rates of the steps."""
    torch.manual_seed(dist.get_rank() if dist.is_initialized() else 7)  # nobody's draws depend on it
    masks = options.pop("masks", False)
    given = {"units": lambda targets: targets != -100} if masks else {}
    dataset = Own(masks=masks, bad=options.pop("bad", ()))
    stream = GlobalBatches(dataset, BATCH, **({"micro": MICRO} | given | options), seed=5)
    model = Net() if by_hand else wrapped(Net())
    optimizer = torch.optim.SGD(
        [{"params": [*model.parameters()][:2], "lr": 0.02}, {"params": [*model.parameters()][2:]}], lr=0.2, momentum=0.9
    )
    if state is not None:
        model.load_state_dict({("" if model.__class__ is Net else "module.") + k: v for k, v in state["model"].items()})
        optimizer.load_state_dict(state["optimizer"])
        stream.load_state_dict(state["stream"])
    schedule = Schedule(total_samples=8 * BATCH, warmup_samples=2 * BATCH, warmup_start_factor=0.25)
    scheduler, rates, before = ScheduleLR(optimizer, schedule, stream), [], torch.get_rng_state()
    for batch in stream:
        for micro in batch:
            with micro.sync(model):
                loss = F.cross_entropy(model(**micro.inputs), micro.targets, reduction="sum")
                (loss * micro.weight).backward()
        if by_hand:
            averaged(model, dist.get_world_size() if dist.is_initialized() and options["joined"] == "mean" else 1)
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if stream.samples_seen >= num_steps * BATCH:
            break
    stream.close()
    assert torch.equal(torch.get_rng_state(), before)  # of the loop itself
    kept = getattr(model, "module", model).state_dict()
    saved = {"model": kept, "optimizer": optimizer.state_dict(), "stream": stream.state_dict()}
    weights = {name: value for name, value in kept.items() if "running" not in name and "num_batches" not in name}
    return weights, saved, rates


def assert_same(ours: Any, reference: Any) -> None:
    for name, value in reference.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-12 * float(value.abs().max()), msg=name)


@pytest.mark.parametrize("options", [{}, {"masks": True}, {"bad": (3, 17, 30), "on_bad_sample": "skip"}], ids=str)
def test_ranks_that_share_a_batch_train_as_one_process(ranks: Any, options: dict[str, Any]):
    (reference, _, rates), *_ = ranks(1).run(own_loop, 5, **options)
    factors = [0.25, 0.625, 1.0]
    np.testing.assert_allclose([one[1] for one in rates[:3]], [0.2 * one for one in factors])
    np.testing.assert_allclose([one[0] / one[1] for one in rates], 0.1)
    for world_size in (2, 3):
        for weights, _, own_rates in ranks(world_size).run(own_loop, 5, **options):
            assert_same(weights, reference)
            assert own_rates == rates


def test_a_run_goes_on_in_the_middle_on_another_number_of_ranks(ranks: Any):
    """By loading processes, too."""
    (reference, *_), *_ = ranks(1).run(own_loop, 5)
    _, state, _ = ranks(3).run(own_loop, 2)[0]
    assert state["stream"] == {"samples_seen": 46, "seed": 5, "num_samples": SAMPLES}
    for weights, *_ in ranks(2).run(own_loop, 5, state=state, num_workers=1):
        assert_same(weights, reference)


@pytest.mark.parametrize("joined", ["mean", "sum"])
def test_gradients_that_the_loop_joins_by_hand_weigh_as_it_says(ranks: Any, joined: str):
    (reference, *_), *_ = ranks(1).run(own_loop, 3)
    for weights, *_ in ranks(2).run(own_loop, 3, by_hand=True, joined=joined):
        assert_same(weights, reference)


def of_our_trainer(num_steps: int) -> Any:
    """The same samples, draws and rates in the trainer, which is not made of `GlobalBatches`."""
    with Runtime.open(precision="fp64") as runtime:
        dataset, model = Own(masks=True), Net()
        plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=MICRO)
        optimizer = torch.optim.SGD(
            [{"params": [*model.parameters()][:2], "lr": 0.02}, {"params": [*model.parameters()][2:]}],
            lr=0.2,
            momentum=0.9,
        )
        for group, factor in zip(optimizer.param_groups, (0.1, 1.0), strict=True):
            group["lr_factor"] = factor
        schedule = Schedule(total_samples=8 * BATCH, warmup_samples=2 * BATCH, warmup_start_factor=0.25)
        loader = MicroBatchLoader(dataset, SampleOrder(SAMPLES, 5), plan, runtime.rank, seed=5)
        run = made_run(
            runtime,
            model,
            CrossEntropy(),
            optimizer,
            plan,
            dataset,
            lambda samples: 0.2 * schedule(samples),
            num_steps,
            seed=5,
            loader=loader,
        )
        train(run)
        return dict(model.state_dict())


def test_our_trainer_arrives_at_the_same_weights(ranks: Any):
    (ours, *_), *_ = ranks(2).run(own_loop, 3, masks=True)
    assert_same(ours, {name: value for name, value in ranks(1).run(of_our_trainer, 3)[0].items() if name in ours})


def refused(what: str) -> str:
    """The error of a rank where rank 1 begins with something else, or nothing joins the gradients."""
    own: dict[str, Any] = {"seed": {"seed": dist.get_rank()}, "position": {"samples_seen": 23 * dist.get_rank()}}
    model = wrapped(Net()) if what == "both" else Net()
    stream = GlobalBatches(Own(), BATCH, joined="sum" if what == "both" else "wrapper", **own.get(what, {}))
    try:
        next(iter(next(iter(stream)))).sync(model).__enter__()
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("seed", "seed: rank 1 has 1; rank 0 has 0"),
        ("position", "samples_seen: rank 1 has 23; rank 0 has 0"),
        ("nobody", "Net is not wrapped, so each of 2 ranks would keep its own gradient"),
        ("both", "DistributedDataParallel averages them in the backward pass"),
    ],
)
def test_what_would_go_wrong_silently_is_refused_on_every_rank(ranks: Any, what: str, said: str):
    assert [said in message for message in ranks(2).run(refused, what)] == [True, True]


def sharded_loop() -> list[Tensor]:
    """A model whose parameters FSDP2 shards over the ranks, if there are several."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double(), Own()
    if dist.is_initialized():
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for batch in GlobalBatches(TensorDataset(data.features, data.labels[:, 0]), 11, micro=2, length="4steps"):
        for micro in batch:
            with micro.sync(model):
                (F.cross_entropy(model(micro.inputs), micro.targets, reduction="sum") * micro.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [(one.full_tensor() if isinstance(one, DTensor) else one).detach().clone() for one in model.parameters()]


def test_parameters_that_fsdp2_shards_become_those_of_one_process(ranks: Any):
    (reference,) = ranks(1).run(sharded_loop)
    for weights in ranks(2).run(sharded_loop):
        torch.testing.assert_close(weights, reference, rtol=0, atol=1e-12)
