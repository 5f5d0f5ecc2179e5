"""The gradients that the backward passes of one optimizer step add up: their norms, without keeping them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import unserializable_hook

from largebatch.optim.state import wide_dtype
from largebatch.optim.trust_ratio import l2_norms

_PROBED_TENSORS = 32
_PER_DIMENSION = 4


class Problem(Enum):
    """Why a step has no measurement of its noise."""

    TWO_FORWARDS = (
        "the model ran several times before a backward pass, so the number of samples of the pass is unknown: call "
        "`tracker.micro_batch(num_samples)` before each micro-batch"
    )
    TWO_BACKWARDS = (
        "a parameter got two gradients from one micro-batch (two backward passes, or reentrant checkpointing of shared "
        "weights), and the norm of their sum is unknown: add the losses up and call backward once"
    )
    NO_FORWARD = (
        "gradients came without a forward pass of the tracked model: track the module that your loop calls, or call "
        "`tracker.micro_batch(num_samples)` before each micro-batch"
    )
    NO_SAMPLES = (
        "the arguments of the model hold no tensor whose rows are samples: call `tracker.micro_batch(num_samples)` "
        "before each micro-batch"
    )
    SPARSE = "a gradient is sparse: use sparse=False in nn.Embedding"
    ONE_MICRO_BATCH = (
        "the gradient is of a single micro-batch: noise shows between two batch sizes. Accumulate 2 or more "
        "micro-batches per step, or train on 2 or more ranks"
    )
    UNEQUAL_RANKS = (
        "ranks made unequal numbers of backward passes, whose weights in the mean are unknown: use reduction='sum' if "
        "each loss is a sum over samples with one divisor for the whole global batch"
    )
    NOT_FINITE = "the gradient is not finite"
    OTHER_GRADIENT = (
        "the gradient at the optimizer step is not the sum of the backward passes since the last step, up to one "
        "factor: it was not cleared, clipped by value, lost digits between ranks, or averaged over ranks that the "
        "tracker does not know (give it the DDP model, or group=)"
    )


class Probe:
    """A few elements of a few parameters, by which gradients are compared.

    Args:
        parameters: those that are trained.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        step = -(-len(parameters) // _PROBED_TENSORS)
        self._places = {place: _spread(parameters[place].shape) for place in range(0, len(parameters), step)}
        self._shapes = {place: parameters[place][index].shape for place, index in self._places.items()}
        self._sums: dict[int, Tensor] = {}

    def add(self, place: int, gradient: Tensor) -> None:
        """Add the gradient of parameter `place`, in the order in which autograd adds to `.grad`."""
        if place in self._places:
            part = gradient[self._places[place]].to(wide_dtype(gradient))
            self._sums[place] = self._sums[place] + part if place in self._sums else part.clone()

    def added(self, like: Tensor) -> Tensor:
        """The sums of the elements, [k], on the device of `like` and of its type."""
        return self._row(self._sums, like)

    def of(self, gradients: Sequence[Tensor | None], like: Tensor) -> Tensor:
        """The elements of other gradients, [k]."""
        found = {place: one[index] for place, index in self._places.items() if (one := gradients[place]) is not None}
        return self._row(found, like)

    def _row(self, parts: dict[int, Tensor], like: Tensor) -> Tensor:
        zero = like.new_zeros(())
        rows = [
            parts[place].to(like) if place in parts else zero.expand(shape) for place, shape in self._shapes.items()
        ]
        return torch.cat([row.reshape(-1) for row in rows])


class BackwardPasses:
    """Listens to the gradients of the parameters, from the first micro-batch of a step until `end`.

    A micro-batch begins with `expect`; the gradients that follow are its own. Cost per pass: one read of the gradients.

    Args:
        parameters: those that are trained.

    Attributes:
        sizes: samples of each micro-batch that had a backward pass.
        problems: what was met.
        probe: the sums of a few elements.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.probe = Probe(self.parameters)
        self.sizes: list[int] = []
        self.problems: set[Problem] = set()
        self._expected: int | None = None
        self._norms: dict[int, Tensor] = {}
        self._sq_norms: list[Tensor] = []
        hooks = [unserializable_hook(partial(self._take, place)) for place in range(len(self.parameters))]
        self._handles = [one.register_hook(hook) for one, hook in zip(self.parameters, hooks, strict=True)]

    def expect(self, num_samples: int) -> None:
        """A micro-batch of so many samples begins."""
        if self._expected is not None:
            self.problems.add(Problem.TWO_FORWARDS)
        if num_samples < 1:
            self.problems.add(Problem.NO_SAMPLES)
        self._expected = num_samples

    def is_cleared(self) -> bool:
        """Whether gradients have come since and all were set to None: the step was given up."""
        return bool(self.sizes) and all(one.grad is None for one in self.parameters)

    def end(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self._close()

    def sq_norms(self, like: Tensor) -> Tensor:
        """Squared norm of the gradient that each pass added, [passes]."""
        return torch.stack([one.to(like) for one in self._sq_norms]) if self._sq_norms else like.new_zeros(0)

    def _take(self, place: int, gradient: Tensor) -> None:
        if self._expected is not None:
            self._close()
            self.sizes.append(self._expected)
            self._expected = None
        if gradient.layout != torch.strided:
            self.problems.add(Problem.SPARSE)
        elif place in self._norms:
            self.problems.add(Problem.TWO_BACKWARDS)
        else:
            gradient = gradient.detach()
            self._norms[place] = norm_of(gradient)
            self.probe.add(place, gradient)

    def _close(self) -> None:
        if self.sizes:
            self._sq_norms.append(sq_sum(list(self._norms.values())))
            self._norms = {}


def norm_of(gradient: Tensor) -> Tensor:
    """L2 norm, a scalar on the device, in float32 or wider."""
    return l2_norms([gradient], dtype=wide_dtype(gradient))[0]


def sq_sum(norms: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of scalars, on the device of the first; in float64 where the device has it."""
    if not norms:
        return torch.zeros(())
    together = torch.stack([one.to(norms[0].device, non_blocking=True) for one in norms])
    return (together if together.device.type == "mps" else together.double()).square().sum()


def _spread(shape: Sequence[int]) -> tuple[slice, ...]:
    """A view of a few elements along each dimension, from all over it.

    >>> torch.arange(10)[_spread([10])].tolist()
    [0, 3, 6, 9]
    """
    return tuple(slice(None, None, max(-(-size // _PER_DIMENSION), 1)) for size in shape)
