"""Where a run's metrics go: metrics.jsonl (the record of truth), the console, W&B, TensorBoard, MLflow, Trackio."""

from largebatch.records.rows.row_file import Row, read_metrics, torn_lines
from largebatch.records.trackers.console import ProgressLine, print_summary
from largebatch.records.trackers.jsonl import JsonlTracker, set_stale_rows_aside
from largebatch.records.trackers.mlflow import MlflowTracker
from largebatch.records.trackers.tables import print_plan, print_table
from largebatch.records.trackers.tensorboard import TensorBoardTracker
from largebatch.records.trackers.tracker import Problems, Tracker
from largebatch.records.trackers.trackio import TrackioTracker
from largebatch.records.trackers.wandb import WandbTracker
from largebatch.records.trackers.wandb_settings import PUBLIC_SERVER, key_source, mode_of, naming_problems

__all__ = [
    "PUBLIC_SERVER",
    "JsonlTracker",
    "MlflowTracker",
    "Problems",
    "ProgressLine",
    "Row",
    "TensorBoardTracker",
    "Tracker",
    "TrackioTracker",
    "WandbTracker",
    "key_source",
    "mode_of",
    "naming_problems",
    "print_plan",
    "print_summary",
    "print_table",
    "read_metrics",
    "set_stale_rows_aside",
    "torn_lines",
]
