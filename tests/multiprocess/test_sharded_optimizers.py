"""LARS and LAMB on parameters that FSDP2 has sharded over ranks: the norm of a tensor is that of the whole tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from largebatch.optim import LAMB, LARS, parameter_groups

STEPS, NUM_SAMPLES = 8, 12
CLASSES: dict[str, Any] = {"LARS": LARS, "LAMB": LAMB}
# (class, options): the paper, what has norms of its own, and what is taken over all tensors.
CASES = [
    ("LARS", {"momentum": 0.9, "trust_coefficient": 0.02}),
    ("LARS", {"momentum": 0.9, "trust_coefficient": 0.02, "denominator": "joint", "nesterov": True}),
    ("LAMB", {}),
    ("LAMB", {"bias_correction": False, "trust_clip": True, "norm_bounds": (0.1, 2.0)}),
    ("LAMB", {"max_grad_norm": 0.5}),
    ("LARS", {"momentum": 0.9, "trust_coefficient": 0.02, "foreach": True}),
    ("LAMB", {"max_grad_norm": 0.5, "foreach": True}),
]


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1, bias=False), nn.Flatten(0), nn.LayerNorm(NUM_SAMPLES)
    )
    nn.init.zeros_(model[0].bias)
    return model.double()


def train(model: nn.Module, name: str, options: dict[str, Any]) -> torch.optim.Optimizer:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(NUM_SAMPLES, 7, generator=generator, dtype=torch.float64)
    targets = torch.randn(NUM_SAMPLES, generator=generator, dtype=torch.float64)
    groups = parameter_groups(model, weight_decay=0.05, exclude_from_decay=["bias"], exclude_from_adaptation=["norm"])
    optimizer = CLASSES[name](groups, lr=0.05, **options)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * min(step / 4, 1)
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
    return optimizer


def sharded(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train with every layer sharded over the ranks; whole tensors afterwards, and how unequal the shards were."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = make_model()
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = train(model, name, options)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    weights = {key: one.full_tensor().detach().numpy() for key, one in model.named_parameters()}
    state = {
        f"{key} {kind}": value.full_tensor().numpy()
        for key, one in model.named_parameters()
        for kind, value in optimizer.state[one].items()
        if isinstance(value, DTensor)
    }
    return {"weights": weights, "state": state, "rows": [one.to_local().shape[0] for one in model.parameters()]}


# Five rows are 2, 2 and 1 on three ranks, 3 and 2 on two; the single row of the last layer is on the first rank alone.
@pytest.mark.parametrize(
    ("world_size", "name", "options"),
    [(3, *case) for case in CASES] + [(2, *CASES[0]), (2, *CASES[-1])],
    ids=lambda part: str(part) if isinstance(part, (str, int)) else "-".join(part),
)
def test_sharded_parameters_take_the_steps_of_whole_ones(ranks, world_size, name, options):
    model = make_model()
    optimizer = train(model, name, options)
    results = ranks(world_size).run(sharded, name, options)
    assert results[0]["rows"] != results[-1]["rows"], "five rows are not shared evenly: one rank has fewer, or none"
    for result in results:
        for key, one in model.named_parameters():
            torch.testing.assert_close(torch.from_numpy(result["weights"][key]), one.detach(), rtol=1e-12, atol=1e-13)
            for kind, value in optimizer.state[one].items():
                if kind != "step":
                    found = torch.from_numpy(result["state"][f"{key} {kind}"])
                    torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-13)
