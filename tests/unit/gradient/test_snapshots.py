"""What an experiment changes on a run is put back, wherever an optimizer of one's own keeps it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from largebatch.gradient.snapshots import rolled_back


class OwnOptimizer(torch.optim.SGD):
    """Keeps what it needs wherever Python lets it: nested in the state, in the groups, on itself."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=torch.tensor(0.1), momentum=0.9)
        self.count, self.history = 0, [torch.zeros(2)]
        self.param_groups[0]["seen"] = [0]

    def step(self, closure: Any = None) -> None:
        super().step()
        self.count += 1
        self.history[0] += 1
        self.history.append(torch.ones(2))
        group = self.param_groups[0]
        group["lr"].mul_(0.5)
        group["seen"].append(self.count)
        for state in self.state.values():
            parts = state.setdefault("parts", {"norms": [], "pair": (torch.zeros(1), 0)})
            parts["norms"].append(self.count)
            parts["pair"][0].add_(1)


def test_whatever_an_own_optimizer_keeps_is_rolled_back():
    module = nn.Linear(2, 1)
    optimizer = OwnOptimizer(module.parameters())

    def step() -> None:
        module(torch.ones(3, 2)).sum().backward()
        optimizer.step()

    def kept() -> str:
        return repr((optimizer.state_dict(), optimizer.count, optimizer.history, list(module.parameters())))

    step()
    before, parts = kept(), optimizer.state[module.weight]["parts"]
    with rolled_back(module, optimizer):
        step()
        step()
        assert kept() != before
    assert kept() == before
    assert optimizer.state[module.weight]["parts"] is parts
