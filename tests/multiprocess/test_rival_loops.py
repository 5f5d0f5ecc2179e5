"""The rivals of `bench loop` train: with the whole set as batch they take the steps of plain gradient descent."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.distributed.runtime import Runtime
from largebatch.experiments.bench.rival_loops import Case, accelerate_loop, torch_loop, torch_loss
from largebatch.losses import CrossEntropy, NextToken, SquaredError

SAMPLES, STEPS, CLIP = 16, 3, 0.5


def _model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(SAMPLES, 5, generator=generator), torch.randint(3, (SAMPLES,), generator=generator)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def trained(name: str, num_micro_batches: int) -> Tensor:
    with Runtime.open() as runtime:
        model = _model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        size = SAMPLES // runtime.world_size // num_micro_batches
        case = Case(
            model, optimizer, F.cross_entropy, *_data(), size, num_micro_batches, runtime.device, clip_norm=CLIP
        )
        loop = {"torch": torch_loop, "accelerate": accelerate_loop}[name](case)
        loop(1)
        loop(STEPS - 1)  # across the end of an epoch
        return _weights(model)


@pytest.mark.parametrize("name", ["torch", "accelerate"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_a_rival_takes_the_steps_of_gradient_descent(ranks, name, world_size, num_micro_batches):
    model, (inputs, targets) = _model(), _data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    for found in ranks(world_size).run(trained, name, num_micro_batches):
        torch.testing.assert_close(found, _weights(model), rtol=1e-5, atol=1e-6)


def test_torchs_loss_is_the_mean_of_ours():
    logits, labels = torch.randn(4, 6, 7), torch.randint(7, (4, 6))
    for loss, outputs, targets, units in (
        (CrossEntropy(label_smoothing=0.1), logits[:, 0], labels[:, 0], 4),
        (NextToken(), logits, labels, 24),
        (SquaredError(), logits[:, 0], logits[:, 1], 4),
    ):
        of_torch = torch_loss(loss)
        assert of_torch is not None
        torch.testing.assert_close(of_torch(outputs, targets), loss.loss_per_sample(outputs, targets).sum() / units)
    assert torch_loss(CrossEntropy(weight=[1.0, 2.0])) is None
    assert torch_loss(NextToken(shift=True)) is None
