"""`largebatch bench scaling`: how far noise moves weights at larger batches, by several rules, by Monte Carlo."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW

from largebatch.batch.joint_scaling import JointRule, scale_hyperparameters
from largebatch.batch.memory_rules import scale_memory
from largebatch.experiments.bench.settings import at_least, setting
from largebatch.optim.uncompiled import without_compiler
from largebatch.records.checkpoint.first_state import take_step

BETAS = (0.95, 0.99)
BASE = {"lr": 1e-3, "betas": BETAS, "eps": 0.3}  # an eps as large as the noise, so that its rule counts
BASE_BATCH = 4
FACTORS = (2, 4, 10, 20)
RULES = {
    "sde": JointRule("sqrt", betas=("half_life", "half_life"), eps="sde"),
    "sde, betas by 1 - k (1 - beta)": JointRule("sqrt", betas=("sde", "sde"), eps="sde"),
    "sde, the rate linear": JointRule("linear", betas=("half_life", "half_life"), eps="sde"),
    "sqrt: the rate alone": JointRule("sqrt"),
}


@dataclass(frozen=True)
class Settings:
    """Settings of the bench."""

    coordinates: int = setting(50_000, at_least(1000), "N", "weights, each with noise of its own")
    samples: int = setting(3200, at_least(800), "N", "samples of each run, whole batches of which are taken")
    seed: int = setting(0, at_least(0), "N", "of the noise")


def measure(settings: Settings) -> bool:
    """Print the table; whether the rule `sde` changes the displacement least at each batch, to three standard errors.

    A gradient is noise of variance 1 at the base batch and 1 / k at k times it, independent from step to step.
    """
    started = time.perf_counter()
    base = squares(JointRule(), BASE_BATCH, settings)
    print(f"AdamW on noise: mean square displacement after {settings.samples:,} samples over that at batch "
          f"{BASE_BATCH}, {settings.coordinates:,} coordinates, ± 1 standard error")  # fmt: skip
    print(f"{'rule':32}" + "".join(f"{f'{factor} times':>18}" for factor in FACTORS))
    found: dict[str, list[tuple[float, float]]] = {}
    for number, (name, rule) in enumerate(RULES.items(), 1):
        ratios = [
            ratio(squares(rule, BASE_BATCH * factor, settings, number), base)
            if _exists(rule, factor)
            else (math.nan, 0.0)
            for factor in FACTORS
        ]
        found[name] = ratios
        cells = ["none" if math.isnan(value) else f"{value:.3f} ± {error:.3f}" for value, error in ratios]
        print(f"{name:32}" + "".join(f"{cell:>18}" for cell in cells), flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    first, *others = found.values()
    return all(
        math.isnan(other) or abs(one - 1) <= abs(other - 1) + 3 * math.hypot(error, beside)
        for ratios in others
        for (one, error), (other, beside) in zip(first, ratios, strict=True)
    )


def _exists(rule: JointRule, factor: int) -> bool:
    """Whether the rule has betas at so many base batches."""
    try:
        for beta, one in zip(BETAS, rule.betas, strict=True):
            scale_memory(beta, base_batch_size=1, global_batch_size=factor, rule=one)
    except ValueError:
        return False
    return True


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def squares(rule: JointRule, batch: int, settings: Settings, stream: int = 0) -> np.ndarray:
    """The square displacement of each coordinate, float64; runs of other batches and streams have other noise."""
    values = scale_hyperparameters(BASE, base_batch_size=BASE_BATCH, global_batch_size=batch, rule=rule)
    generator = torch.Generator().manual_seed(_seed(settings.seed, batch, stream))
    weight = nn.Parameter(torch.zeros(settings.coordinates, dtype=torch.float64))
    betas = (values["beta1"].value, values["beta2"].value)
    with without_compiler():
        optimizer = AdamW([weight], values["lr"].value, betas, values["eps"].value, weight_decay=0.0)
    for _ in range(settings.samples // batch):
        noise = torch.randn(settings.coordinates, generator=generator, dtype=torch.float64)
        weight.grad = noise * math.sqrt(BASE_BATCH / batch)
        take_step(optimizer)
    found: np.ndarray = weight.detach().square().numpy()
    return found


def ratio(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The ratio of two independent means, and its standard error to first order."""
    value = one.mean() / other.mean()
    shares = [each.std(ddof=1) / each.mean() / math.sqrt(len(each)) for each in (one, other)]
    return float(value), float(value * math.hypot(*shares))
