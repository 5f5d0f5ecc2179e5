"""The noisy quadratic under momentum, averaging of the weights and preconditioning: exact expected loss over steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from largebatch.diagnostics.closed_forms.arrays import Float64Array, Numbers, require_batch, require_rate, vector
from largebatch.diagnostics.closed_forms.quadratic import NoisyQuadratic

_GOLDEN = (math.sqrt(5) - 1) / 2
_NARROW = 0.01  # relative width at which the search of a rate ends; the steps are flat around the best one
_MOST_DOUBLINGS = 40
_LEAST_DECAY = 1e-12  # lr h of a coordinate whose state at rest float64 still resolves


@dataclass(frozen=True)
class Descent:
    """An optimizer on the noisy quadratic.

        v = m v + P g        theta = theta - lr v        average = ema average + (1 - ema) theta

    with P = h^-power. Power 0 is SGD, 1 is Newton's method; Adam and K-FAC lie between (Zhang et al. 2019, section
    3.4). The loss is that of the average, which begins at the first weights; with ema 0 it is that of the weights.

    Attributes:
        lr: learning rate.
        momentum: m, in [0, 1), without damping, as in torch.
        ema: share of the average that stays in a step, in [0, 1).
        power: of the preconditioner, in [0, 1].

    Raises:
        ValueError: if a number lies outside its range.
    """

    lr: float
    momentum: float = 0.0
    ema: float = 0.0
    power: float = 0.0

    def __post_init__(self) -> None:
        require_rate(self.lr)
        for name, value in (("momentum", self.momentum), ("ema", self.ema)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value}: must be in [0, 1).")
        if not 0 <= self.power <= 1:
            raise ValueError(f"power={self.power}: must be in [0, 1]; 0 is no preconditioner, 1 the inverse curvature.")


def preconditioned(task: NoisyQuadratic, power: float) -> NoisyQuadratic:
    """The task in the coordinates h^(power/2) theta, in which steps along h^-power g are plain gradient steps.

    Its curvature is h^(1 - power) and its noise c h^-power; the loss is the same.

    >>> preconditioned(NoisyQuadratic([4.0], [8.0]), 0.5).noise_variance.tolist()
    [4.0]
    """
    h = task.curvature
    return NoisyQuadratic(h ** (1 - power), task.noise_variance * h**-power)


def expected_losses(
    task: NoisyQuadratic, theta: Numbers, descent: Descent, *, num_steps: int, global_batch_size: int
) -> Float64Array:
    """Expected loss after 0, 1, ..., `num_steps` steps with fresh noise in every one, [num_steps + 1].

    The second moments of (theta, v, average) follow M' = A M A' + b b' c/B in every coordinate.

    >>> task = NoisyQuadratic([1.0], [1.0])
    >>> expected_losses(task, [2.0], Descent(lr=0.5), num_steps=1, global_batch_size=4)  # 1/2 (1/4 4 + 1/4 1/4)
    array([2.     , 0.53125])
    """
    moments = _Moments(task, theta, descent, global_batch_size)
    state, losses = moments.start, [moments.loss(moments.start)]
    for _ in range(num_steps):
        state = moments.step @ state @ moments.step.transpose(0, 2, 1) + moments.noise
        losses.append(moments.loss(state))
    return np.array(losses)


def steps_to_loss(
    task: NoisyQuadratic, theta: Numbers, descent: Descent, *, target_loss: float, global_batch_size: int
) -> int | None:
    """Steps to an expected loss of at most `target_loss`; None if the loss stays above it or grows.

    Found by doubling: the step before is above the target, this one is not. It is the first such step wherever the
    expected loss falls monotonically; strong momentum can make it oscillate.

    Raises:
        ValueError: for a rate so small that float64 does not resolve where the flattest coordinate comes to rest.

    >>> task = NoisyQuadratic([1.0], [0.0])
    >>> steps_to_loss(task, [1.0], Descent(lr=0.5), target_loss=0.01, global_batch_size=1)  # 1/2 4^-t
    3
    """
    moments = _Moments(task, theta, descent, global_batch_size)
    if moments.loss(moments.start) <= target_loss:
        return 0
    if moments.slowest < _LEAST_DECAY:
        raise ValueError(
            f"lr={descent.lr}: the flattest coordinate moves by {moments.slowest:.1g} of its distance in a step, which "
            f"float64 does not resolve. Use a rate {_LEAST_DECAY / moments.slowest:.1g} times as large, or more."
        )
    if not moments.is_stable or moments.loss(settled := moments.settled()) >= target_loss:
        return None
    excess = moments.start - settled
    at_rest = moments.loss(settled)

    def is_above(power: Float64Array) -> bool:
        """Of the state whose distance to rest is A^t excess A'^t."""
        row = power[:, moments.observed]
        return at_rest + moments.loss_of(np.einsum("di,dij,dj->d", row, excess, row)) > target_loss

    jumps = [moments.step]
    while is_above(jumps[-1]):
        if len(jumps) > _MOST_DOUBLINGS:
            return None
        jumps.append(jumps[-1] @ jumps[-1])
    taken, power = 0, np.broadcast_to(np.eye(moments.size), moments.step.shape)
    for doublings in reversed(range(len(jumps))):
        further = jumps[doublings] @ power
        if is_above(further):
            power, taken = further, taken + 2**doublings
    return taken + 1


def best_rate(
    task: NoisyQuadratic,
    theta: Numbers,
    *,
    target_loss: float,
    global_batch_size: int,
    momentum: float = 0.0,
    ema: float = 0.0,
    power: float = 0.0,
) -> tuple[Descent, int]:
    """The learning rate with the fewest steps to a loss, to 1 %, and these steps.

    The steps fall with the rate until noise or curvature stops them, so that a golden-section search over log lr finds
    the best.

    Raises:
        ValueError: if no rate reaches the loss.
    """
    largest = preconditioned(task, power).max_stable_lr(momentum=momentum)
    smallest = math.log(_LEAST_DECAY / float(preconditioned(task, power).curvature.min())) + 2.0
    found: dict[float, int | None] = {}

    def steps(log_lr: float) -> float:
        if log_lr not in found:
            descent = Descent(math.exp(log_lr), momentum, ema, power)
            found[log_lr] = steps_to_loss(
                task, theta, descent, target_loss=target_loss, global_batch_size=global_batch_size
            )
        reached = found[log_lr]
        # A rate that is too large never reaches the loss: worse, the larger it is, so that the search turns back.
        return math.inf if reached is None else float(reached)

    high = math.log(largest) - _NARROW
    low = high - 2.0
    while steps(low) == math.inf or steps(low) < steps(low + 1.0):
        low -= 2.0
        if low < smallest:
            raise ValueError(f"target_loss={target_loss}: no rate reaches it. Choose a larger one.")
    while high - low > _NARROW:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if steps(left) <= steps(right):
            high = right
        else:
            low = left
    best = min((one for one in found.items() if one[1] is not None), key=lambda one: (one[1] or 0, one[0]))
    return Descent(math.exp(best[0]), momentum, ema, power), int(best[1] or 0)


class _Moments:
    """Second moments of (theta, v) or (theta, v, average) in every coordinate, [d, size, size].

    Attributes:
        start: before the first step.
        step, noise: a step turns M into step M step' + noise.
        size: 2 or 3.
        observed: index of what has the loss.
        is_stable: whether M stays bounded.
        slowest: lr h of the flattest coordinate.
    """

    def __init__(self, task: NoisyQuadratic, theta: Numbers, descent: Descent, global_batch_size: int) -> None:
        require_batch(global_batch_size)
        given = vector("theta", theta, length=len(task.curvature))
        squares = given**2 * task.curvature**descent.power
        task = preconditioned(task, descent.power)
        self._curvature = task.curvature
        self.step, enters = _transition(task.curvature, descent)
        self.size = len(enters)
        self.observed = self.size - 1 if descent.ema else 0
        self.start = np.zeros_like(self.step)
        first = np.array([0, 2] if descent.ema else [0])
        self.start[:, first[:, None], first] = squares[:, None, None]
        self.noise = np.multiply.outer(task.noise_variance / global_batch_size, np.outer(enters, enters))
        self.slowest = descent.lr * float(task.curvature.min())
        self.is_stable = descent.lr < task.max_stable_lr(momentum=descent.momentum)

    def loss(self, moments: Float64Array) -> float:
        """1/2 sum h E."""
        return self.loss_of(moments[:, self.observed, self.observed])

    def loss_of(self, squares: Float64Array) -> float:
        """The same of E alone, [d]."""
        return 0.5 * float(self._curvature @ squares)

    def settled(self) -> Float64Array:
        """After very many steps: M = step M step' + noise."""
        count = self.size**2
        pairs = np.einsum("dik,djl->dijkl", self.step, self.step).reshape(-1, count, count)
        flat = np.linalg.solve(np.eye(count) - pairs, self.noise.reshape(-1, count, 1))
        return flat.reshape(self.step.shape)


def _transition(h: Float64Array, descent: Descent) -> tuple[Float64Array, Float64Array]:
    """(A of every coordinate, b): the state becomes A state + b e."""
    lr, kept, ones = descent.lr, descent.ema, np.ones_like(h)
    m = descent.momentum * ones
    rows = [[1 - lr * h, -lr * m], [h, m]]
    enters = [-lr, 1.0]
    if kept:
        rows = [[*row, 0 * ones] for row in rows]
        rows.append([(1 - kept) * rows[0][0], (1 - kept) * rows[0][1], kept * ones])
        enters.append((1 - kept) * -lr)
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=1), np.array(enters)
