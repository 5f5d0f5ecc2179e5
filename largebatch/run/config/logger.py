"""Schema of the section `logger`: the trackers of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from largebatch.diagnostics.settings import Section


class WandbConfig(Section):
    """Weights & Biases; None: its environment variable decides."""

    mode: Literal["auto", "online", "offline", "disabled"]
    project: Annotated[str, Field(min_length=1, pattern=r"^[^/\\#?%:]+$")] | None
    entity: str | None
    name: str | None
    group: str | None
    job_type: str | None
    notes: str | None
    tags: list[str] | None
    id: Annotated[str, Field(min_length=1, pattern=r"^[^:;,#?/']+$")] | None
    artifacts: Literal["none", "last", "best"] = "none"


class MlflowConfig(Section):
    """MLflow; None: its environment variable decides."""

    enabled: bool = False
    experiment: str | None = None
    tracking_uri: str | None = None


class TrackioConfig(Section):
    """Trackio; None: its environment variable decides."""

    enabled: bool = False
    project: Annotated[str, Field(min_length=1)] = "largebatch"
    space_id: str | None = None


class LoggerConfig(Section):
    """Trackers besides metrics.jsonl."""

    plots: bool
    wandb: WandbConfig
    tensorboard: bool
    mlflow: MlflowConfig = MlflowConfig()
    trackio: TrackioConfig = TrackioConfig()
