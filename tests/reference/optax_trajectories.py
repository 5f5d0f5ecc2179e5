"""Runs optax in float64 and saves the weights after every step: python -m tests.reference.optax_trajectories OUT.npz

In a process of its own, because JAX's precision is a setting of the process and its threads do not survive a fork.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_platforms", "cpu")

import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from tests.reference.oracle_setting import (  # noqa: E402
    BETAS,
    EPS,
    GRADS,
    MOMENTUM,
    PEAKS,
    SHARES,
    TRUST,
    WEIGHT_DECAY,
    WEIGHTS,
)

MATRIX_ALONE = [True, False]


def lars(schedule: Any, **options: Any) -> optax.GradientTransformation:
    settings = {"weight_decay": WEIGHT_DECAY, "trust_coefficient": TRUST, "eps": 0.0, "momentum": MOMENTUM, **options}
    return optax.lars(schedule, **settings)


def lamb(schedule: Any, **options: Any) -> optax.GradientTransformation:
    settings = {"b1": BETAS[0], "b2": BETAS[1], "eps": EPS, "weight_decay": WEIGHT_DECAY, **options}
    return optax.lamb(schedule, **settings)


def paper_lars(schedule: Any) -> optax.GradientTransformation:
    """Algorithm 1 of the LARS paper out of optax's parts: its own optax.lars has the joint denominator."""

    def scale(grad: Any, weight: Any) -> Any:
        weight_norm, grad_norm = jnp.linalg.norm(weight), jnp.linalg.norm(grad)
        ratio = TRUST * weight_norm / (grad_norm + WEIGHT_DECAY * weight_norm)
        return (grad + WEIGHT_DECAY * weight) * jnp.where((weight_norm == 0) | (grad_norm == 0), 1.0, ratio)

    by_ratio = optax.stateless(lambda updates, params: jax.tree.map(scale, updates, params))
    return optax.chain(by_ratio, optax.scale_by_learning_rate(schedule), optax.trace(decay=MOMENTUM))


CASES: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "lars": lars,
    "lars-nesterov": lambda schedule: lars(schedule, nesterov=True),
    "lars-eps": lambda schedule: lars(schedule, eps=0.1),
    "lars-undecayed": lambda schedule: lars(schedule, weight_decay=0.0),
    "lars-excluded": lambda schedule: lars(schedule, weight_decay_mask=MATRIX_ALONE, trust_ratio_mask=MATRIX_ALONE),
    "lars-paper": paper_lars,
    "lamb": lamb,
    "lamb-undecayed": lambda schedule: lamb(schedule, mask=MATRIX_ALONE),
}


def trajectory(case: str, shares: list[float]) -> Any:
    rates = jnp.asarray(shares) * PEAKS[case.partition("-")[0]]
    transformation = CASES[case](lambda step: rates[step])
    weights = [jnp.asarray(weight) for weight in WEIGHTS]
    state = transformation.init(weights)
    rows = []
    for grads in GRADS:
        updates, state = transformation.update([jnp.asarray(grad) for grad in grads], state, weights)
        weights = optax.apply_updates(weights, updates)
        rows.append(np.concatenate([np.asarray(weight).ravel() for weight in weights]))
    return np.stack(rows)


if __name__ == "__main__":
    np.savez(sys.argv[1], **{f"{case}/{name}": trajectory(case, SHARES[name]) for case in CASES for name in SHARES})
