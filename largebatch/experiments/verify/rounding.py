"""The effect of rounding on a run: the reference's own response to changes in the last digits of its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from largebatch.batch.plan import BatchPlan
from largebatch.experiments.verify.comparison import Bounds, compare, relative_sizes, wide
from largebatch.experiments.verify.trajectories import Trajectory, reference_trajectory
from largebatch.run.prepare import Prepared

# Roundings of one operation: sums of n terms in blocks, as matrix products and all-reduces make them, are off by up to
# about sqrt(n) / 10 units of their terms; 32 stands for batches of 100,000. Whatever is left over is in FACTOR.
UNITS = 32
# A tensor's bound is FACTOR times its largest answer in REPEATS runs: the answers to random changes of one size scatter
# about it, and a tensor of a single number may happen to answer little in one of them. Sound runs stay below a seventh
# of that, defects are 10^5 times above (`largebatch bench verify`).
FACTOR, REPEATS = 8, 4
# No gradient may be off by more, whatever a model makes of a change in the last digits: a model that draws its own
# random numbers gives any answer.
MOST = {"fp64": 1e-7, "fp32": 1e-3}
# Weights with a larger bound than that show nothing where it is also more than this share of what training did to them.
TOO_COARSE = 0.1


class LastDigits:
    """Takes up to `UNITS` units in the last place off a model's numbers: deterministic, from a seed of its own.

    The terms of every sum are changed one by one, so that the sum answers at the size of its terms, also where it is 0
    but for rounding. Numbers only shrink: those between 0 and 1 stay there.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    @contextmanager
    def changed_in(self, model: nn.Module) -> Iterator[None]:
        """Change the weights once, and inside what every module returns and gets back as its gradient."""
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(self._changed(parameter))
        # Scripted modules take no hooks; the modules around them have them.
        modules = [one for one in model.modules() if not isinstance(one, torch.jit.ScriptModule)]
        handles = [module.register_forward_hook(self._change_output) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _change_output(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        return tree_map_only(Tensor, self._changed_both_ways, output)

    def _changed_both_ways(self, value: Tensor) -> Tensor:
        value = self._changed(value)
        if value.requires_grad:
            value.register_hook(self._changed)
        return value

    def _changed(self, value: Tensor) -> Tensor:
        if not (value.is_floating_point() or value.is_complex()) or value.layout is not torch.strided:
            return value
        size = UNITS * torch.finfo(value.dtype).eps / 2
        noise = torch.rand(value.shape, generator=self._generator, dtype=value.dtype.to_real())
        return value * (1 - size * noise.to(value.device))


def rounding_bounds(prepared: Prepared, plan: BatchPlan, reference: Trajectory, *, num_steps: int) -> Bounds:
    """How far a run may be from `reference_trajectory(prepared, plan, num_steps=num_steps)` by rounding alone.

    The reference is repeated with changes in the last digits of its weights, activations and their gradients. The
    results differ as far as this model, this loss and this optimizer amplify them.
    """
    answers = []
    for repeat in range(REPEATS):
        changed = reference_trajectory(prepared, plan, num_steps=num_steps, change=LastDigits(repeat))
        answers.append(compare(changed, reference))
    most = MOST[prepared.config.precision.compute]
    gradient = _bounds([answer.gradient for answer in answers])
    weights = _bounds([answer.weights for answer in answers])
    undecided = tuple(_undecided(prepared.model, reference, weights, most))
    return Bounds(
        {name: min(bound, most) for name, bound in gradient.items()},
        {name: bound for name, bound in weights.items() if name not in undecided},
        _bounds([answer.statistics for answer in answers]),
        undecided=undecided,
    )


def _bounds(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: FACTOR * max(_number(answer[name]) for answer in answers) for name in answers[0]}


def _undecided(model: nn.Module, reference: Trajectory, bounds: Mapping[str, float], most: float) -> Iterator[str]:
    moved = {
        name: wide(reference.weights[name]) - wide(before.detach().cpu()) for name, before in model.named_parameters()
    }
    for name, movement in relative_sizes(moved, reference.weights).items():
        if bounds[name] > max(most, TOO_COARSE * movement) and movement > 0:
            yield name


def _number(error: float) -> float:
    return math.inf if math.isnan(error) else error
