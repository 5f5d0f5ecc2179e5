"""Mixed samples, views and transforms change neither with ranks nor with the cut, through a ramp and a resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.data import Augmentation, MicroBatchLoader, Mixing, random_classification
from largebatch.distributed.runtime import Runtime
from largebatch.losses import CrossEntropy, MixedLabels
from largebatch.run.build import open_run
from largebatch.run.prepare import prepare
from largebatch.training.loop import train
from tests.multiprocess.made_run import made_run
from tests.unit.composing import compose_run
from tests.unit.data.mixed_reference import mixed_sample

SEED, CLASSES, WEIGHT = 3, 5, [0.5, 1.0, 2.0, 0.25, 3.0]
SIZES, MILESTONE, STEPS, RATE = (21, 33), 42, 5, 0.1
MIXING = {"mixup": 0.4, "cutmix": 1.0, "probability": 0.8}


def model_and_data() -> tuple[nn.Module, Any]:
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, CLASSES))
    return model, random_classification(51, CLASSES, (1, 8, 8), "train")


def trained(max_micro: int | None) -> list[np.ndarray]:
    with Runtime.open(precision="fp64") as runtime:
        model, data = model_and_data()
        plan = BatchRamp(
            tuple(
                BatchPlan.solve(global_batch_size=size, world_size=runtime.world_size, max_micro_batch_size=max_micro)
                for size in SIZES
            ),
            (MILESTONE,),
        )
        loss = MixedLabels(CrossEntropy(weight=WEIGHT, label_smoothing=0.1))
        augment = Augmentation(SEED, mixing=Mixing(**MIXING))
        loader = MicroBatchLoader(data, SampleOrder(len(data), SEED), plan, runtime.rank, augment=augment)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
        run = made_run(
            runtime, model, loss, optimizer, plan, data, lambda seen: RATE, STEPS, seed=SEED, loader=loader, log_every=1
        )
        assert train(run) == "finished"
        return [one.detach().double().numpy() for one in run.module.parameters()]


def reference() -> list[np.ndarray]:
    """One big batch per step in plain torch, of samples that are mixed one by one."""
    model, data = model_and_data()
    model = model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    order, position = SampleOrder(len(data), SEED), 0
    smooth = nn.CrossEntropyLoss(torch.tensor(WEIGHT).double(), reduction="none", label_smoothing=0.1)
    for _ in range(STEPS):
        size = SIZES[position >= MILESTONE]
        # As the run gets them: mixed in float32.
        found = [mixed_sample(data.inputs.numpy(), one, order, **MIXING) for one in range(position, position + size)]
        position += size
        outputs = model(torch.from_numpy(np.stack([one[0] for one in found])).double())
        first, second = (data.targets[[one[place] for one in found]] for place in (1, 2))
        share, weight = torch.tensor([one[3] for one in found]).double(), torch.tensor(WEIGHT).double()
        losses = share * smooth(outputs, first) + (1 - share) * smooth(outputs, second)
        optimizer.zero_grad()
        (losses.sum() / (share * weight[first] + (1 - share) * weight[second]).sum()).backward()
        optimizer.step()
    return [one.detach().numpy() for one in model.parameters()]


@pytest.mark.parametrize(("world_size", "max_micro"), [(1, 5), (2, None), (3, 4)])
def test_any_factorization_equals_one_big_batch_of_mixed_samples(ranks, world_size, max_micro):
    expected = reference()
    for weights in ranks(world_size).run(trained, max_micro):
        for ours, theirs in zip(weights, expected, strict=True):
            # Inputs are rounded to float32, in the same way but for a sum of two products.
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7 * float(np.abs(theirs).max()))


def config(*overrides: str) -> DictConfig:
    return compose_run(
        *("data=synthetic", "model=linear", "precision=fp64", "logger=none", "observers.progress=false"),
        *("batch.total=24", "batch.max_micro=5", "data.augment.mixup=0.4", "data.augment.flip=true"),
        *("schedule=constant", "observers.checkpoint.every=4steps", *overrides),
    )


def weights_of(composed: DictConfig) -> list[np.ndarray]:
    with open_run(prepare(composed, {}), lambda: False, []) as opened:
        train(opened.run)
        return [one.detach().numpy().copy() for one in opened.run.module.parameters()]


def test_a_resumed_run_mixes_what_the_whole_run_mixed(tmp_path):
    whole = weights_of(config("length=8steps", f"run.dir={tmp_path / 'whole'}"))
    checkpoint = tmp_path / "whole" / "checkpoints" / "step_00000004"
    resumed = weights_of(config("length=8steps", f"run.dir={tmp_path / 'again'}", f"resume={checkpoint}"))
    plain = weights_of(config("length=8steps", f"run.dir={tmp_path / 'plain'}", "data.augment.mixup=0"))
    assert all(map(np.array_equal, whole, resumed))
    assert not all(map(np.array_equal, whole, plain))


def viewed(folder: Path) -> tuple[list[np.ndarray], list[float]]:
    """Weights of a contrastive run on two views of each sample, and the losses of two evaluations of equal weights."""
    composed = compose_run(
        *("data=digits", "loss=info_nce", "model=two_views", "precision=fp64", "logger=none"),
        *("model.encoder.in_features=64", "observers.progress=false", "observers.evaluation.every=null"),
        *("data.limit=400", "batch.total=45", "batch.max_micro=8", "length=4steps", "observers.evaluation.micro=45"),
        *("data.augment.views=2", "data.augment.flip=true", "data.augment.crop_padding=1"),
        f"run.root={folder}",
        "data.augment.transform={_target_:tests.unit.data.own_transforms.Jitter,strength:0.1}",
    )
    with open_run(prepare(composed, os.environ), lambda: False, []) as opened:
        train(opened.run)
        opened.evaluation.measure(opened.run)
        losses = [opened.evaluation.last["eval/val_loss"]]
        opened.evaluation.measure(opened.run)
        losses.append(opened.evaluation.last["eval/val_loss"])
        return [one.detach().numpy().copy() for one in opened.run.module.parameters()], losses


def test_two_views_of_a_sample_are_the_same_on_any_number_of_ranks(ranks, tmp_path):
    ((alone, losses),) = ranks(1).run(viewed, tmp_path / "alone")
    assert losses[0] == losses[1] > 0.01  # two equal views would be told apart from all others at once
    for weights, others in ranks(3).run(viewed, tmp_path / "three"):
        for ours, theirs in zip(weights, alone, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * float(np.abs(theirs).max()))
        assert others == pytest.approx(losses, rel=1e-12)
