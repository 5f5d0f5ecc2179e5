"""Weight decay as a function of the batch: how much of a weight a number of samples takes away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from largebatch.batch.memory_rules import require_batches
from largebatch.batch.scaling import ScaledValue

DECAY_RULES = ("none", "timescale")


@dataclass(frozen=True)
class Decay:
    """How an optimizer shrinks a weight that has no gradient.

    Attributes:
        is_coupled: whether the decay is added to the gradient, lambda w, and so goes through the velocity of
            torch.optim.SGD; else w = (1 - lr lambda) w, as in AdamW.
        momentum: of the velocity.
        nesterov: whether a step looks ahead along it.
    """

    is_coupled: bool = False
    momentum: float = 0.0
    nesterov: bool = False

    def lost(self, lr: float, weight_decay: float) -> float:
        """The share of the weight that a step takes away in the long run.

        With a = lr lambda: decoupled, and coupled without momentum, a itself. Coupled: w' = w - lr v' with
        v' = m v + lambda w shrinks by 1 - s, where s is the smaller root of s^2 - (1 - m + a) s + a = 0; the larger
        one dies out with the momentum. With Nesterov's step, lambda w + m v': s^2 - (1 - m + a (1 + m)) s + a = 0.

        Raises:
            ValueError: if there is none, as the weight would swing.

        >>> Decay(is_coupled=True, momentum=0.5).lost(0.5, 0.125)  # s^2 - 0.5625 s + 0.0625 = 0
        0.152...
        """
        step = lr * weight_decay
        if not self.is_coupled or self.momentum == 0:
            inside, lost = 1 - step, step
        else:
            slope = 1 - self.momentum + step * (1 + self.momentum if self.nesterov else 1)
            inside = slope * slope - 4 * step
            lost = 2 * step / (slope + math.sqrt(max(inside, 0.0)))
        if inside < 0 or lost >= 1:
            raise ValueError(
                f"lr * weight_decay = {lr:g} * {weight_decay:g} at momentum {self.momentum:g}: a weight would swing "
                "rather than shrink, so its decay has no timescale. Lower one of them."
            )
        return lost

    def weight_decay(self, lr: float, lost: float) -> float:
        """The decay with which a step takes this share away: the inverse of `lost`."""
        if not self.is_coupled or self.momentum == 0:
            return lost / lr
        return lost * (1 - self.momentum - lost) / (1 - lost * (1 + self.momentum if self.nesterov else 1)) / lr

    @property
    def formula(self) -> str:
        """Of `weight_decay`, over `lost`, `momentum` and `lr`."""
        if not self.is_coupled or self.momentum == 0:
            return "{lost} / lr"
        return (
            f"{{lost}} * (1 - momentum - {{lost}}) / (1 - {{lost}}{' * (1 + momentum)' if self.nesterov else ''}) / lr"
        )


def scale_weight_decay(
    base: float,
    *,
    base_lr: float,
    lr: float,
    base_batch_size: int,
    global_batch_size: int,
    rule: str,
    before: Decay | None = None,
    after: Decay | None = None,
) -> ScaledValue:
    """The weight decay of a batch, given `base` at the base batch.

    `timescale`: the same samples take the same share of a weight away. The weights of AdamW are an average over its
    past updates with a timescale of 1 / (lr lambda) steps (Wang and Aitchison 2024, arXiv 2405.13698), and here that
    timescale stays in samples. To first order lr' lambda' = kappa lr lambda; this is exact,
    1 - lr' lambda' = (1 - lr lambda)^kappa, so that rescaling twice is rescaling once. It holds at the peak rates:
    where a schedule lowers both, to first order.

    Args:
        base: lambda at the base batch.
        base_lr: peak rate at the base batch.
        lr: peak rate at this batch.
        base_batch_size: samples per step at the base.
        global_batch_size: samples per step.
        rule: `none` or `timescale`.
        before: how the optimizer decays at the base batch; None: decoupled.
        after: with the momentum of this batch; None: decoupled.

    Raises:
        ValueError: for an unknown rule, or where no decay takes away that share.

    >>> found = scale_weight_decay(0.5, base_lr=0.2, lr=0.4, base_batch_size=1, global_batch_size=2, rule="timescale")
    >>> round(found.value, 6)  # 0.5 to first order
    0.475
    """
    require_batches(base_batch_size, global_batch_size)
    if rule not in DECAY_RULES:
        raise ValueError(f"rule={rule!r} is no rule of weight_decay. Choose one of {', '.join(DECAY_RULES)}.")
    if rule == "none" or base == 0:
        return ScaledValue(base, "none", "base_weight_decay", {"base_weight_decay": base})
    before, after = before or Decay(), after or Decay()
    base_lost = before.lost(base_lr, base)
    lost = -math.expm1(global_batch_size / base_batch_size * math.log1p(-base_lost))
    most = 1 - after.momentum if after.is_coupled else 1.0
    if lost >= most:
        raise ValueError(
            f"weight_decay: a batch of {global_batch_size:,} is to take {lost:.4g} of a weight away, and with momentum "
            f"{after.momentum:g} a step takes less than {most:.4g}. Scale the momentum, too, or leave the decay."
        )
    is_step = not (before.is_coupled and before.momentum)
    step = "base_lr * base_weight_decay" if is_step else "base_lost"
    formula = after.formula.format(lost=f"(1 - (1 - {step}) ** (global_batch_size / base_batch_size))")
    inputs: dict[str, Any] = {"base_lr": base_lr, "base_weight_decay": base} if is_step else {"base_lost": base_lost}
    inputs |= {"global_batch_size": global_batch_size, "base_batch_size": base_batch_size, "lr": lr}
    if "momentum" in formula:
        inputs["momentum"] = after.momentum
    return ScaledValue(after.weight_decay(lr, lost), rule, formula, inputs)
