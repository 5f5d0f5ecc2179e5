"""What the user set on an object stays: modes, rates of groups, frozen parameters, flags. On any number of ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.random_keys import stream_key
from largebatch.data import random_classification
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.accumulation import micro_batch_key
from largebatch.gradient.snapshots import measuring
from largebatch.losses import CrossEntropy
from largebatch.optim import keep_lr_ratios, lr_factors, parameter_groups
from largebatch.training.loop import train
from largebatch.training.observers import EvaluationObserver, RowLog
from tests.multiprocess.made_run import made_run

pytestmark = pytest.mark.quick

SAMPLES, BATCH, MICRO, STEPS = 40, 12, 2, 4


class FrozenInTrain(nn.BatchNorm1d):
    """As in detection: `train()` of the class keeps the layer in evaluation mode."""

    def train(self, mode: bool = True) -> FrozenInTrain:
        return super().train(False)


class Net(nn.Module):
    """A norm that is frozen by `eval()`, one by its class, one that trains; dropout off, and dropout on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, 6)
        self.frozen, self.by_class, self.norm = nn.BatchNorm1d(6), FrozenInTrain(6), nn.BatchNorm1d(6)
        self.off, self.on, self.head = nn.Dropout(0.5), nn.Dropout(0.3), nn.Linear(6, 3)
        for norm in (self.frozen, self.by_class):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        self.frozen.eval()
        self.off.eval()
        self.frozen.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.on(self.off(self.norm(self.by_class(self.frozen(self.stem(inputs)))).tanh())))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Groups whose rates differ by config and by code, momentum and decay in all of them."""
    factors = lr_factors(model, {"^stem": 0.1, "^head": 3.0})
    groups = parameter_groups(model, weight_decay=0.1, lr=0.05, lr_factors=factors)
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    keep_lr_ratios(optimizer)
    return optimizer


def lr_at(samples_seen: int) -> float:
    return 0.2 / (1 + samples_seen)


class Ignoring:
    """A tracker of nothing."""

    problems: tuple[str, ...] = ()

    def log(self, row: dict[str, Any]) -> None: ...


def trained() -> dict[str, Any]:
    """Weights and buffers after `STEPS` steps with an evaluation in each, and torch's flags before and after."""
    flags = {name: read() for name, read in FLAGS.items()}
    with Runtime.open(precision="fp64") as runtime:
        model, dataset = Net(), random_classification(SAMPLES, 3, (6,), "train")
        plan = BatchPlan.pinned(global_batch_size=BATCH, world_size=runtime.world_size, micro_batch_size=MICRO)
        journal = RowLog([Ignoring()], num_samples=SAMPLES)
        observer = EvaluationObserver(
            journal, train=dataset, validation=dataset, loss=CrossEntropy(), every=BATCH, micro_batch_size=5
        )
        optimizer = optimizer_of(model)
        run = made_run(runtime, model, CrossEntropy(), optimizer, plan, dataset, lr_at, STEPS, observers=[observer])
        train(run)
        with measuring(run.module):
            pass
        modes = {name: module.training for name, module in run.module.named_modules()}
        state = {name: value.numpy() for name, value in run.module.state_dict().items()}
        grads = {name: one.grad is None for name, one in run.module.named_parameters()}
        same = {name: read() == flags[name] for name, read in FLAGS.items()}
        return {"state": state, "modes": modes, "no_grad": grads, "flags": same}


FLAGS: dict[str, Any] = {
    "matmul tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "cudnn tf32": lambda: torch.backends.cudnn.allow_tf32,
    "matmul precision": torch.get_float32_matmul_precision,
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "benchmark": lambda: torch.backends.cudnn.benchmark,
    "dtype": torch.get_default_dtype,
    "threads": torch.get_num_threads,
    "grad": torch.is_grad_enabled,
    "anomaly": torch.is_anomaly_enabled,
}


def in_plain_torch() -> dict[str, Tensor]:
    """The definition: one process, one forward and backward per micro-batch, `train()` and then `eval()` of parts."""
    model, dataset, order = Net().double(), random_classification(SAMPLES, 3, (6,), "train"), SampleOrder(SAMPLES, 0)
    rates = {"stem": 0.1, "norm": 1.0, "by_class": 1.0, "head": 3.0}
    velocity: dict[str, Tensor] = {}
    for step in range(STEPS):
        model.train()
        model.frozen.eval()
        model.off.eval()
        model.zero_grad()
        ids = torch.from_numpy(order.ids(step * BATCH, BATCH)).split(MICRO)
        for index, part in enumerate(ids):
            torch.manual_seed(micro_batch_key(stream_key(0, "forward", step * BATCH), index))
            outputs = model(dataset.inputs[part].double())
            (nn.functional.cross_entropy(outputs, dataset.targets[part], reduction="sum") / BATCH).backward()
        with torch.no_grad():
            for name, one in model.named_parameters():
                if one.grad is None:
                    continue
                decays = name in ("stem.weight", "head.weight")
                grad = one.grad + 0.1 * one if decays else one.grad
                velocity[name] = grad.clone() if step == 0 else 0.9 * velocity[name] + grad
                one -= lr_at(step * BATCH) * rates[name.split(".")[0]] * velocity[name]
    return dict(model.state_dict())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_modes_rates_and_flags_of_the_user_stay_and_the_run_is_plain_torchs(ranks, world_size):
    expected = in_plain_torch()
    for result in ranks(world_size).run(trained):
        for name, value in expected.items():
            torch.testing.assert_close(torch.from_numpy(result["state"][name]), value, rtol=1e-10, atol=1e-13)
        still = {name for name, is_training in result["modes"].items() if not is_training}
        assert still == {"frozen", "by_class", "off"}
        assert {name for name, missing in result["no_grad"].items() if missing} == {"frozen.weight", "frozen.bias"}
        assert all(result["flags"].values()), result["flags"]
