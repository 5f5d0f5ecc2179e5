"""What ours and every other implementation go through: two tensors, 30 random gradients, two schedules."""

from __future__ import annotations

import numpy as np

WEIGHT_DECAY, MOMENTUM, TRUST = 0.05, 0.9, 0.01
BETAS, EPS = (0.9, 0.999), 1e-6
NUM_STEPS = 30

_rng = np.random.default_rng(0)
WEIGHTS = [_rng.standard_normal(shape) for shape in ((7, 5), (5,))]
GRADS = [[_rng.standard_normal(weight.shape) for weight in WEIGHTS] for _ in range(NUM_STEPS)]
SHARES = {"constant": [1.0] * NUM_STEPS, "warmup": [(step + 1) / NUM_STEPS for step in range(NUM_STEPS)]}
"""Of the peak rate, which is 0.5 for LARS and 0.05 for LAMB."""
PEAKS = {"lars": 0.5, "lamb": 0.05}
