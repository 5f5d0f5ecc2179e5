"""What follows the batch in a study: everything that is not searched, so that batch sizes compare by nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from largebatch.experiments.study.settings import RangeConfig
from largebatch.optim.memory_probe import Probed
from largebatch.run.config.reading import parse_config
from largebatch.run.config.schema import TrainConfig
from largebatch.run.following import probe_of

_DECAY = "weight_decay stays: its rule needs the rate at the base batch, which a study does not know"


@dataclass(frozen=True)
class Joint:
    """How the hyperparameters of an optimizer follow the batch in a study.

    Attributes:
        rules: hyperparameter -> rule; those that the config sets itself included.
        stays: reasons why others stay, one each.
    """

    rules: dict[str, Any]
    stays: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return {"rules": self.rules, "stays": list(self.stays)}

    def __str__(self) -> str:
        following = ", ".join(f"{name} by {rule}" for name, rule in self.rules.items())
        return "; ".join([f"follow the batch: {following}" if following else "nothing follows the batch", *self.stays])


def jointly_scaled(config: DictConfig, ranges: Mapping[str, RangeConfig]) -> tuple[DictConfig, Joint]:
    """The config of an optimizer in which what is neither searched nor given a rule follows the batch, and how.

    Momentum and betas keep their half-life, eps its share of the noise, clipping its share of steps.

    Args:
        config: of `largebatch train`.
        ranges: what is searched.
    """
    parsed = parse_config(config)
    probed, searched = probe_of(parsed), {one.key for one in ranges.values()}
    rules, stays = _rules(parsed, probed, searched)
    config = OmegaConf.create(config)
    for name, rule in rules.items():
        OmegaConf.update(config, f"scaling.{name}", rule)
    decays = parsed.optimizer.get("weight_decay", 0.0) != 0 and parsed.scaling.weight_decay == "none"
    is_searched = "optimizer.weight_decay" in searched
    return config, Joint(parsed.scaling.following | rules, (*stays, *([_DECAY] if decays and not is_searched else [])))


def _rules(config: TrainConfig, probed: Probed, searched: set[str]) -> tuple[dict[str, Any], list[str]]:
    given, values = config.scaling.following, probed.values
    rules: dict[str, Any] = {}
    stays: list[str] = []

    def is_open(name: str, key: str) -> bool:
        if any(one == key or one.startswith((f"{key}.", f"{key}[")) for one in searched):
            stays.append(f"{name} is searched at each batch")
            return False
        return name not in given

    def allowed(name: str, value: float) -> str:
        if name in probed.refusals:
            stays.append(f"{name} stays: {probed.refusals[name]}")
            return "none"
        return "half_life" if value else "none"

    if values.get("momentum") and is_open("momentum", "optimizer.momentum"):
        rules["momentum"] = allowed("momentum", values["momentum"])
    if "betas" in values and is_open("betas", "optimizer.betas"):
        both = [allowed(name, beta) for name, beta in zip(("beta1", "beta2"), values["betas"], strict=True)]
        rules["betas"] = both[0] if both[0] == both[1] else both
    if values.get("eps") and is_open("eps", "optimizer.eps"):
        rules["eps"] = "sde"
    if config.clip_norm is not None and is_open("clip_norm", "clip_norm"):
        rules["clip_norm"] = "noise"
    return {name: rule for name, rule in rules.items() if rule != "none"}, stays
