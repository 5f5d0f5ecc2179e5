"""What a measurement must leave as it was: a model that moves all it can, and all that it may have moved, as bits."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn


class Restless(nn.Module):
    """Writes buffers, replaces one, draws from every generator, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(4, momentum=0.3)
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("replaced", torch.full((2,), -0.0), persistent=False)
        self.register_buffer("none", None)
        self.calls, self.fails_at = 0, -1

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("as asked")
        self.count += 1
        self.replaced = self.replaced + 1
        scale = 1 + 0.0 * (torch.rand(()) + np.random.rand() + random.random())  # noqa: NPY002
        return self.second(self.norm(self.first(inputs)).relu()) * scale


def generators() -> dict[str, Any]:
    """The states of the generators that everybody shares."""
    _, words, place, *_ = np.random.get_state()  # noqa: NPY002
    drawn = torch.get_rng_state().numpy().tobytes()
    return {"torch": drawn, "numpy": (words.tobytes(), place), "python": random.getstate()}


def bits(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Weights, buffers, gradients, modes, generators and the optimizer's state, and which tensors hold them."""
    named = [*module.named_parameters(), *module.named_buffers()]
    gradients = [one.grad for one in module.parameters()]
    values = {
        "tensors": [(name, id(one), one.detach().numpy().tobytes()) for name, one in named],
        "gradients": [None if one is None else (id(one), one.numpy().tobytes()) for one in gradients],
        "modes": [(part.training, getattr(part, "momentum", None)) for part in module.modules()],
        **generators(),
    }
    if optimizer is not None:
        states = [optimizer.state.get(one, {}) for one in module.parameters()]
        values["states"] = [{key: (id(one), one.numpy().tobytes()) for key, one in state.items()} for state in states]
        values["has no other state"] = sum(map(bool, states)) == len(optimizer.state)
        values["settings"] = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
    return values
