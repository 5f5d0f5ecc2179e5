"""Gives the parameter groups of an optimizer the values that follow the batch, stage by stage of a ramp."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from largebatch.batch.joint_scaling import JointRule, scale_hyperparameters
from largebatch.optim.memory_probe import Probed, followed_keys

_COUNTING = ("torch.optim.", "largebatch.optim.")  # whose state `step` is t in 1 - beta^t, and nothing else


@dataclass(frozen=True)
class StageBatch:
    """A stage of a ramp.

    Attributes:
        global_batch_size: samples per step.
        peak_lr: that the rule gives to a group without a factor of its own: before any decay, by the schedule or by
            what a growing batch leaves of one.
        clip_norm: largest gradient norm; None: no clipping.
    """

    global_batch_size: int
    peak_lr: float
    clip_norm: float | None = None


class ScaledGroups:
    """The values of each group of an optimizer in each stage of a ramp.

    A group keeps its own: its values at the base batch are scaled, each by the rule. Where a stage begins, state keeps
    its meaning:

    - a velocity that adds gradients up is multiplied so that every past gradient still has the effect on the weights
      that it would have had: under v = m v + g, w = w - lr v, that is lr m / (1 - m) times the velocity;
    - the counter t of the bias correction 1 - beta^t becomes the number of steps of the new size that fade as much;
      Where beta1 and beta2 fade by different rules, one counter cannot serve both: it goes with the slower one, and the
      moment of the other is multiplied so that what its bias correction makes of it stays;
    - other averages, such as Muon's momentum, are averages under any beta, and stay.

    Args:
        optimizer: with its groups as they are made, at the values of the base batch.
        rule: of all values.
        probed: what the optimizer was found to do.
        base_lr: peak rate at the base batch.
        base_batch_size: samples per step that the values of the groups are meant for.
        stages: of the ramp, in order.
        stage_at: samples seen -> index of the stage of the step that starts there.

    Raises:
        ValueError: if a rule has no value for a group.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rule: JointRule,
        probed: Probed,
        *,
        base_lr: float,
        base_batch_size: int,
        stages: Sequence[StageBatch],
        stage_at: Callable[[int], int],
    ) -> None:
        self._rule, self._probed, self._stages, self._stage_at = rule, probed, tuple(stages), stage_at
        self._base_lr = base_lr
        self._left: int | None = None  # the stage in which another run leaves this one
        base = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]

        def values(group: Mapping[str, Any], stage: StageBatch) -> dict[str, Any]:
            keys, factor = _scaled_keys(group, rule), float(group.get("lr_factor", 1.0))
            scaled = scale_hyperparameters(
                {"lr": base_lr * factor} | {key: group[key] for key in keys},
                base_batch_size=base_batch_size,
                global_batch_size=stage.global_batch_size,
                rule=rule,
                form=probed.form,
            )
            found = {key: scaled[key].value for key in keys if key != "betas"}
            return found | (
                {"betas": tuple(scaled[one].value for one in ("beta1", "beta2"))} if "betas" in keys else {}
            )

        self._values_of = lambda stage: tuple(values(group, stage) for group in base)
        self.values = tuple(self._values_of(stage) for stage in self._stages)

    def with_stages(self, stage_at: Callable[[int], int]) -> ScaledGroups:
        """The same values of the same stages, in a run that comes to them at other positions."""
        other = copy.copy(self)
        other._stage_at = stage_at
        return other

    def left_for(self, stage: StageBatch, samples_seen: int) -> ScaledGroups:
        """Those of a run that leaves this one for a stage of its own and stays there.

        Args:
            stage: of the other run.
            samples_seen: where it leaves, whatever position it goes on with: state belongs to the stage there, or to an
                earlier one where that has not yet begun to write its values.

        Raises:
            ValueError: if a rule has no value for a group.
        """
        other = self.with_stages(lambda _: len(self._stages))
        other._left = self._stage_at(samples_seen)
        other._stages, other.values = (*self._stages, stage), (*self.values, self._values_of(stage))
        return other

    @property
    def clips(self) -> bool:
        """Whether the largest gradient norm follows the batch."""
        return self._rule.clip_norm != "none"

    @property
    def keys(self) -> frozenset[str]:
        """The options of groups that it writes."""
        return frozenset(key for groups in self.values for group in groups for key in group)

    def clip_norm_at(self, samples_seen: int) -> float | None:
        """The largest gradient norm of the step that starts there."""
        return self._stages[self._stage_at(samples_seen)].clip_norm

    def rate_factor_at(self, samples_seen: int) -> float:
        """The peak rate of the step that starts there, over that of the base batch."""
        return self._stages[self._stage_at(samples_seen)].peak_lr / self._base_lr

    def row_at(self, samples_seen: int) -> dict[str, float]:
        """What follows the batch, by name, in the step that starts there: each value that of the first group with it.

        Without the rate, and without values that a rule leaves alone: `momentum`, `beta1`, `beta2`, `eps`,
        `weight_decay`, `clip_norm`.
        """
        number, found = self._stage_at(samples_seen), dict[str, Any]()
        for group in self.values[number]:
            found = dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False)) | group | found
        found["clip_norm"] = self._stages[number].clip_norm
        return {name: float(found[name]) for name in self._rule.followers if found.get(name) is not None}

    def write(self, optimizer: Optimizer, samples_seen: int, *, carries: bool = True) -> None:
        """Give the groups their values for the step that starts after `samples_seen` samples.

        Args:
            optimizer: the one that the values were made for, or one with the same groups.
            samples_seen: position of the run.
            carries: whether state that belongs to the values of another stage is carried over.
        """
        number = self._stage_at(samples_seen)
        for place, (group, values) in enumerate(zip(optimizer.param_groups, self.values[number], strict=True)):
            now = {key: group[key] for key in values}
            if now == values:
                continue
            fitting = [one for one, groups in enumerate(self.values) if groups[place] == now]
            if carries and fitting:
                before = self._stages[self._origin(fitting, number, samples_seen)]
                self._carry(optimizer, group, now, values, before.peak_lr / self._stages[number].peak_lr)
            group.update(values)

    def _origin(self, fitting: Sequence[int], number: int, samples_seen: int) -> int:
        """The stage that state belongs to, of those with its values: that of the last step, for whose rate it is."""
        if self._left is not None:
            return max((one for one in fitting if one <= self._left), default=fitting[0])
        # A stage shorter than a step may have had none.
        ended = [one for one in fitting if self._stage_at(samples_seen - self._stages[one].global_batch_size) == one]
        return max((one for one in ended or fitting if one < number), default=fitting[0])

    def _carry(
        self,
        optimizer: Optimizer,
        group: Mapping[str, Any],
        was: Mapping[str, Any],
        now: Mapping[str, Any],
        rates: float,
    ) -> None:
        factor = 1.0
        if self._probed.form.adds and "momentum" in now and was["momentum"] != now["momentum"]:
            factor = self._velocity_factor(was["momentum"], now["momentum"], rates)
        counts = "betas" in now and f"{type(optimizer).__module__}.".startswith(_COUNTING)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name in self._probed.velocities if factor != 1 else ():
                if isinstance(state.get(name), Tensor):
                    state[name].mul_(factor)
            if counts and isinstance(state.get("step"), Tensor):
                self._recount(group, state, was["betas"], now["betas"])

    def _recount(
        self, group: Mapping[str, Any], state: Mapping[str, Any], was: Sequence[float], now: Sequence[float]
    ) -> None:
        """Multiply t so that beta^t stays, of the slower beta, and the other moment so that m / (1 - beta^t) stays."""
        pairs = [(a, b) for a, b in zip(was, now, strict=True) if 0 < a < 1 and 0 < b < 1]
        if not pairs:
            return
        slower, after = max(pairs)
        before, share = float(state["step"]), math.log(slower) / math.log(after)
        if share != 1:
            state["step"].mul_(share)
        if before == 0 or not group.get("bias_correction", True) or "momentum_decay" in group:  # NAdam keeps a product
            return
        for name, a, b in zip(("beta1", "beta2"), was, now, strict=True):
            if (a, b) in pairs and not math.isclose(math.log(a), share * math.log(b), rel_tol=1e-9):
                for moment in set(self._probed.moments.get(name, ())) & state.keys():
                    state[moment].mul_(math.expm1(share * before * math.log(b)) / math.expm1(before * math.log(a)))

    def _velocity_factor(self, was: float, now: float, rates: float) -> float:
        """A velocity has the effect lr m / (1 - m) times itself, and with Nesterov's step lr m^2 / (1 - m)."""
        power = 2 if self._probed.form.nesterov else 1
        if now == 0:
            return 1.0  # the next step forgets it, whatever it is
        factor = (was / now) ** power * (1 - now) / (1 - was)
        return factor if self._probed.holds_rate else factor * rates


def _scaled_keys(group: Mapping[str, Any], rule: JointRule) -> list[str]:
    """The options of a group that the rule scales."""
    asked = {
        "momentum": rule.momentum != "none",
        "betas": rule.betas != ("none", "none"),
        "eps": rule.eps != "none",
        "weight_decay": rule.weight_decay != "none" and group.get("weight_decay") != 0,
    }
    keys = [key for key in followed_keys(group) if asked[key]]
    # The decay of momentum SGD depends on the momentum, scaled or not.
    return keys + ["momentum"] * ("weight_decay" in keys and "momentum" not in keys and "momentum" in group)
