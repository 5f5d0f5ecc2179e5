"""Keys of rows that decide something: whether a run writes them, and which way is better."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from largebatch.batch.duration import Duration
from largebatch.losses.metrics import Metric
from largebatch.records.metric_keys import METRIC_FAMILIES, metric_key
from largebatch.run.config.did_you_mean import did_you_mean
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import RunNumbers

_OF_EVALUATION = re.compile(r"(eval|gap)/.+")
_SET = "eval/(train|val|ema_val)_"
_DOWN, _UP = (
    re.compile(f"{more}.+/(train_|val_|ema_val_)?{name}") for more, name in (("gap/.+|", "loss"), ("", "accuracy"))
)
_OFF = (None, "off", "stop", "euclidean", "none", False)


def is_of_evaluation(key: str) -> bool:
    """Whether the evaluation writes the key, so that every rank has its value."""
    return _OF_EVALUATION.fullmatch(key) is not None


def larger_is_better(key: str, metrics: Mapping[str, Metric]) -> bool | None:
    """The direction of a key; None: nobody knows.

    >>> larger_is_better("eval/val_loss", {}), larger_is_better("eval/val_accuracy", {}), larger_is_better("a/b", {})
    (False, True, None)
    """
    name = re.sub(_SET, "", key)
    if name != key and name in metrics:
        return metrics[name].higher_is_better
    return False if _DOWN.fullmatch(key) else True if _UP.fullmatch(key) else None


def chosen_direction(key: str, mode: str | None, metrics: Mapping[str, Metric]) -> bool:
    """The direction of a key that `watched_problems` has checked."""
    known = larger_is_better(key, metrics)
    return mode == "max" if known is None else known


def watched_problems(config: TrainConfig, metrics: Mapping[str, Metric]) -> list[str]:
    """Errors of `observers.checkpoint.best_by` and `observers.early_stopping`."""
    checkpoint, early = config.observers.checkpoint, config.observers.early_stopping
    problems = _problems_of("observers.checkpoint.best", "_by", "_mode", checkpoint, config, metrics)
    problems += _problems_of("observers.early_stopping.", "metric", "mode", early, config, metrics)
    if early.metric is not None and early.patience is None:
        problems.append("observers.early_stopping.patience=null: nothing says how long to wait. Give e.g. 5ep.")
    if early.metric is None and (early.patience is not None or early.min_delta):
        problems.append("observers.early_stopping: has no effect without a metric. Give e.g. metric: eval/val_loss.")
    return problems


def patience_of(config: TrainConfig, numbers: RunNumbers) -> int:
    """The patience of early stopping, in samples."""
    length = Duration.parse(str(config.observers.early_stopping.patience))
    return length.samples(num_samples=numbers.num_samples, global_batch_size=numbers.plan.global_batch_size)


def _problems_of(
    prefix: str, by: str, how: str, section: Any, config: TrainConfig, metrics: Mapping[str, Metric]
) -> list[str]:
    stem = prefix.rpartition(".")[2]
    key, mode = getattr(section, stem + by), getattr(section, stem + how)
    if key is None:
        return [f"{prefix}{how}={mode}: has no effect without {prefix}{by}."] if mode is not None else []
    if problem := _why_unwritten(key, config, metrics):
        return [f"{prefix}{by}={key}: {problem}"]
    known = larger_is_better(key, metrics)
    if known is None and mode is None:
        return [f"{prefix}{by}={key}: is a larger value better, or a smaller one? Give {prefix}{how}=max or min."]
    if known is not None and mode is not None and known != (mode == "max"):
        return [f"{prefix}{how}={mode}: a {'larger' if known else 'smaller'} {key} is better. Remove it."]
    return []


def _why_unwritten(key: str, config: TrainConfig, metrics: Mapping[str, Metric]) -> str:
    """The reason that no row of this run has the key; empty if one may."""
    known = metric_key(key)
    if known is None:
        if config.observers.own and not is_of_evaluation(key):
            return ""  # an observer of the user's own may write it
        names = [one.name for family in METRIC_FAMILIES for one in family.keys if one.name != "step"]
        return f"no row has this key.{did_you_mean(key, names)} The keys are in largebatch/records/README.md."
    if key.startswith("eval/ema_") and not config.ema.is_used:
        return "there is no average of the weights. Set ema.half_life, such as 5ep."
    family = next(one for one in METRIC_FAMILIES if known in one.keys)
    if family.asked_by == "metrics":
        name = re.sub(f"{_SET}|gap/", "", key)
        hint = did_you_mean(key, [f"eval/val_{one}" for one in ("loss", "accuracy", *metrics)])
        return "" if name in metrics else f"there is no metric {name}.{hint} Choose one with metric=NAME."
    value: Any = config
    for part in family.asked_by.split(".") if family.asked_by else ():
        value = getattr(value, part)
    if family.asked_by and value in _OFF and family.asked_by != "observers.evaluation.every":
        return f"is not measured in this run. Set {family.asked_by}."
    return ""
