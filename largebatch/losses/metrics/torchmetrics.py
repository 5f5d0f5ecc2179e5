"""Objects of torchmetrics as metrics, where all of their states are sums over samples."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from largebatch.losses.protocol import prediction

_SUMS = ("sum", "dim_zero_sum")  # names of the functions that add up the states of ranks


class SummedStates:
    """A `torchmetrics.Metric`: what `update` adds to its states, and `compute` of their sums.

    Args:
        module: a metric whose states are tensors with `dist_reduce_fx="sum"`.

    Raises:
        ValueError: for another kind of state, whose value over several ranks would not be that of all samples, or a
            metric that does not say whether higher is better.
    """

    def __init__(self, module: Any) -> None:
        name = type(module).__name__
        others = {key: how for key, how in module._reductions.items() if getattr(how, "__name__", how) not in _SUMS}
        if others:
            key, how = next(iter(others.items()))
            raise ValueError(
                f"{name} of torchmetrics keeps {key} by {getattr(how, '__name__', how)}, not as a sum over samples: it "
                "needs all outputs at once, or depends on the batches. Choose one with summed states (in some classes "
                "by thresholds=100), or write sums and value: see `largebatch.losses.metrics.Metric`."
            )
        if not isinstance(module.higher_is_better, bool):
            raise ValueError(
                f"{name} of torchmetrics does not say whether higher is better. Set higher_is_better in a subclass."
            )
        self.higher_is_better: bool = module.higher_is_better
        self._module = copy.deepcopy(module)
        self._names = sorted(module._defaults)

    @staticmethod
    def fits(made: Any) -> bool:
        """Whether it is an object of torchmetrics, or works like one."""
        return all(hasattr(made, one) for one in ("update", "compute", "reset", "_reductions", "_defaults"))

    def sums(self, outputs: Any, targets: Tensor) -> Tensor:
        """The states of a batch, all in the row of its first sample, [n, k]."""
        module = self._module.to(targets.device)
        module.reset()
        module.update(prediction(outputs), targets)
        states = torch.cat([getattr(module, name).reshape(-1).double() for name in self._names])
        rows = states.new_zeros((len(targets), len(states)))
        rows[0] = states
        module.reset()
        return rows

    def value(self, sums: Tensor) -> float:
        """`compute` of these states."""
        module = self._module.to("cpu")
        module.reset()
        states = [getattr(module, name) for name in self._names]
        for name, state, part in zip(self._names, states, sums.split([one.numel() for one in states]), strict=True):
            setattr(module, name, part.reshape(state.shape).to(state.dtype))
        module._update_count = 1  # else it warns that nothing was updated
        computed = module.compute()
        module.reset()
        if computed.numel() != 1:
            raise ValueError(
                f"{type(module).__name__} of torchmetrics computes {list(computed.shape)} numbers, and a row has one "
                "under a key. Choose an average."
            )
        return float(computed)
