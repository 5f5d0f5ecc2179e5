"""What watches a run: metrics, evaluation, checkpoints. Removing all of them leaves the weights bit-identical."""

from largebatch.observers.checkpoints import CheckpointObserver, restore
from largebatch.observers.evaluation import EvaluationObserver
from largebatch.observers.metrics import Journal, MetricsObserver
from largebatch.observers.profile import ProfileObserver

__all__ = [
    "CheckpointObserver",
    "EvaluationObserver",
    "Journal",
    "MetricsObserver",
    "ProfileObserver",
    "restore",
]
