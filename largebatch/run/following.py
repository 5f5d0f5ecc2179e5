"""What follows the batch in a run besides its rate: the values of each stage, and the groups that get them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from largebatch.batch.joint_scaling import JointRule, OptimizerForm, rate_with_momentum, scale_hyperparameters
from largebatch.batch.memory_rules import ANY_BETA, MEMORY_RULES, ema_decay
from largebatch.batch.ramp import BatchRamp
from largebatch.batch.scaling import ScaledValue
from largebatch.optim.memory_probe import Probed, probe
from largebatch.optim.scaled_groups import ScaledGroups, StageBatch
from largebatch.optim.uncompiled import without_compiler
from largebatch.records.checkpoint.first_state import EXECUTION_OPTIONS
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.scaling import ScalingConfig
from largebatch.run.config.schema import TrainConfig
from largebatch.run.config.targets import TargetError, make
from largebatch.run.precision.device import has_kernels
from largebatch.training.weight_average import AverageSettings

Values = Mapping[str, ScaledValue]


@dataclass(frozen=True)
class Following:
    """The rule by which the hyperparameters of a run follow its batch.

    Attributes:
        rule: half-lives in samples.
        base: `lr` and the values of the optimizer at the base batch, as far as it has them; `clip_norm`.
        base_batch_size: samples per step that they are meant for.
        probed: what the optimizer was found to do.
    """

    rule: JointRule
    base: dict[str, Any]
    base_batch_size: int
    probed: Probed

    def values(self, global_batch_size: int) -> dict[str, ScaledValue]:
        """All values at this batch; the rate is that of its rule, before any decay."""
        return scale_hyperparameters(
            self.base,
            base_batch_size=self.base_batch_size,
            global_batch_size=global_batch_size,
            rule=self.rule,
            form=self.probed.form,
        )

    def with_momentum(self, rate: ScaledValue, global_batch_size: int) -> ScaledValue:
        """A rate for the base momentum as one for that of this batch."""
        if not self.probed.form.adds or self.rule.momentum == "none":
            return rate
        return rate_with_momentum(rate, self.base["momentum"], self.values(global_batch_size)["momentum"])

    def stage(self, global_batch_size: int, peak_lr: float) -> StageBatch:
        """The stage of this batch and rate, before any decay: past gradients fade by it as they do without growth."""
        clip_norm = self.values(global_batch_size)["clip_norm"].value if self.base["clip_norm"] else None
        return StageBatch(global_batch_size, peak_lr, clip_norm)

    def shown(self, global_batch_size: int) -> dict[str, ScaledValue]:
        """The values that follow this batch, without the rate."""
        values = self.values(global_batch_size)
        return {name: one for name, one in values.items() if name != "lr" and one.rule != "none"}


def following_of(config: TrainConfig, samples: Callable[[str], int]) -> Following | None:
    """What follows the batch in this run besides the rate; None: nothing, and the optimizer is not looked at.

    Args:
        config: of the run.
        samples: reads a duration.

    Raises:
        ConfigError: if a rule has no effect on this optimizer, or none is known to hold for it.
    """
    scaling = config.scaling
    if problems := scaling.problems(config.clip_norm):
        raise ConfigError(problems)
    if not scaling.following:
        return None
    decay = config.optimizer.get("weight_decay", 0.0)
    probed = probe_of(config) if scaling.following.keys() != {"clip_norm"} else Probed(OptimizerForm(), {})
    base = {"lr": scaling.base_lr, **probed.values, "weight_decay": decay}
    if problems := _problems(scaling, base, probed, config.optimizer.get("_target_")):
        raise ConfigError(problems)
    rule = _rule(scaling, samples)
    base = {name: value for name, value in base.items() if name != "eps" or rule.eps != "none"}
    return Following(rule, base | {"clip_norm": config.clip_norm}, _batch(scaling), probed)


def following_anyway(config: TrainConfig) -> Following:
    """The same for a run in which only the rate follows the batch: its other values stay, by the rule `none`."""
    probed = probe_of(config)
    base = {"lr": config.scaling.base_lr, **probed.values, "weight_decay": config.optimizer.get("weight_decay", 0.0)}
    rule = JointRule(lr=config.scaling.rule)
    return Following(rule, base | {"clip_norm": config.clip_norm}, _batch(config.scaling), probed)


def probe_of(config: TrainConfig) -> Probed:
    """What the optimizer of a config does.

    Raises:
        ConfigError: if it cannot be tried on two small tensors.
    """
    try:
        return probe(maker_of(config))
    except TargetError:
        raise
    except Exception as error:
        raise ConfigError(
            [f"scaling: {config.optimizer.get('_target_')} could not be tried on a 2 x 2 matrix and a vector, which "
             f"tells what it remembers ({type(error).__name__}: {error}). Let only the rate follow the batch."]
        ) from error  # fmt: skip


def maker_of(config: TrainConfig) -> Callable[[list[dict[str, Any]]], Optimizer]:
    """Makes the optimizer of a config over given groups, in torch's plain loops."""
    # Patterns are for the names of parameters that are not here.
    left_out = EXECUTION_OPTIONS | {"weight_decay", "adamw_patterns"}
    node = {key: value for key, value in config.optimizer.items() if key not in left_out}
    if has_kernels(config.optimizer):
        node["compile"] = False

    def made(groups: list[dict[str, Any]]) -> Optimizer:
        with without_compiler():
            optimizer: Optimizer = make("optimizer", node, params=groups, lr=config.scaling.base_lr)
        return optimizer

    return made


def _problems(scaling: ScalingConfig, base: Mapping[str, Any], probed: Probed, target: Any) -> list[str]:
    problems = []
    betas = dict(zip(("beta1", "beta2"), scaling.beta_rules, strict=True))
    asked = [("momentum", "momentum", scaling.momentum), ("eps", "eps", scaling.eps)]
    asked += [("betas", name, rule) for name, rule in betas.items()]
    asked += [("weight_decay", "weight_decay", scaling.weight_decay)]
    for key, name, rule in asked:
        if rule == "none":
            continue
        value = base.get(key)
        value = value[name == "beta2"] if key == "betas" and value is not None else value
        remedy = f"Set it to none{', or one rule for each beta' if key == 'betas' else ''}"
        if name in probed.refusals and value != 0:
            problems.append(f"scaling.{key}={rule}: no rule is known to hold for {target}: {probed.refusals[name]}. "
                            f"{remedy}.")  # fmt: skip
        elif value is None:
            what = "no betas with an eps beside their second moment" if key == "eps" else f"no {key}"
            problems.append(f"scaling.{key}={rule}: {target} has {what}, so nothing would follow. Set it to none.")
        elif value == 0:
            problems.append(f"scaling.{key}={rule}: has no effect, {name} is 0. {remedy}, or give another {name}.")
    return list(dict.fromkeys(problems))


def _rule(scaling: ScalingConfig, samples: Callable[[str], int]) -> JointRule:
    def memory(key: str, text: str) -> str | int:
        if text in MEMORY_RULES:
            return text
        if (found := samples(text)) < 1:
            raise ConfigError([f"scaling.{key}={text}: is {found} samples, and a half-life is at least one."])
        return found

    first, second = (memory("betas", text) for text in scaling.beta_rules)
    return JointRule(
        lr=scaling.rule,
        momentum=memory("momentum", scaling.momentum),
        betas=(first, second),
        eps=scaling.eps,
        weight_decay=scaling.weight_decay,
        clip_norm=scaling.clip_norm,
        beta_bounds=ANY_BETA if scaling.beta_bounds is None else (scaling.beta_bounds[0], scaling.beta_bounds[1]),
    )


def _batch(scaling: ScalingConfig) -> int:
    return int(scaling.base_batch_size)


def scaled_groups(
    following: Following | None,
    optimizer: Optimizer,
    ramp: BatchRamp,
    as_batch: int | None = None,
) -> ScaledGroups | None:
    """The values of the groups of a fresh optimizer in each stage, the first of which it gets; None: none follow.

    Args:
        following: the rule.
        optimizer: as it is made.
        ramp: of the run.
        as_batch: the batch that the rules see in place of the run's.

    Raises:
        ConfigError: if a rule has no value for a group of the optimizer.
    """
    if following is None:
        return None
    sizes = [as_batch or plan.global_batch_size for plan in ramp.plans]
    try:
        groups = ScaledGroups(
            optimizer,
            following.rule,
            following.probed,
            base_lr=following.base["lr"],
            base_batch_size=following.base_batch_size,
            stages=[following.stage(size, following.values(size)["lr"].value) for size in sizes],
            stage_at=ramp.stage_at,
        )
    except ValueError as error:
        raise ConfigError([f"scaling: {error}"]) from None
    groups.write(optimizer, 0)
    return groups


def scaled_stages(following: Following | None, totals: tuple[int, ...]) -> tuple[Values, ...]:
    """What follows the batch in each stage, by name."""
    return tuple({} if following is None else following.shown(total) for total in totals)


def with_average(
    scaled: tuple[Values, ...], average: AverageSettings | None, config: TrainConfig, ramp: BatchRamp
) -> tuple[Values, ...]:
    """The same with the share that an average of the weights keeps per step."""
    if average is None or average.half_life is None:
        return scaled
    ema, first = config.ema, ramp.plans[0].global_batch_size
    of = {"decay": ema.decay, "decay_batch_size": ema.decay_batch_size or first} if ema.decay is not None else None
    rows = []
    for values, plan in zip(scaled, ramp.plans, strict=True):
        size = plan.global_batch_size
        one = ema_decay(size, half_life=round(average.half_life)) if of is None else ema_decay(size, **of)  # type: ignore[arg-type]
        rows.append({**values, "ema": one})
    return tuple(rows)
