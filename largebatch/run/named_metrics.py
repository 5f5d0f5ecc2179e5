"""Makes the metrics of a config: from largebatch, from torchmetrics, or the user's own."""

from __future__ import annotations

from functools import partial
from typing import Any

from largebatch.losses.metrics import Metric, as_metric
from largebatch.run.config.findings import Findings
from largebatch.run.config.schema import TrainConfig
from largebatch.run.config.targets import TargetError, make


def named_metrics(config: TrainConfig, findings: Findings) -> dict[str, Metric]:
    """The metrics by name; errors go into the findings."""
    made = dict[str, Metric]()
    for name, node in config.metrics.items():
        if (metric := findings.attempt(f"metrics.{name}", partial(_made, f"metrics.{name}", node))) is not None:
            made[name] = metric
    return made


def _made(key: str, node: dict[str, Any]) -> Metric:
    if "_target_" not in node:
        raise TargetError(f"{key}: names no metric. Give +{key}._target_=MODULE.CLASS, or choose one with metric=NAME.")
    return as_metric(make(key, node))
