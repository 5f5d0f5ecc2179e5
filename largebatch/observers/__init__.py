"""What watches a run: metrics, evaluation, noise scale, sharpness, communication, checkpoints, layers, ledger, ranks.

Removing all of them leaves the weights bit-identical.
"""

from largebatch.observers.checkpoints import CheckpointObserver
from largebatch.observers.communication import CommunicationObserver
from largebatch.observers.evaluation import EvaluationObserver
from largebatch.observers.guard import GuardObserver
from largebatch.observers.layers import LayersObserver
from largebatch.observers.ledger import LedgerObserver, WatchedLoader
from largebatch.observers.metrics import Journal, MetricsObserver
from largebatch.observers.micro_batches import MicroBatchObserver
from largebatch.observers.noise_scale import NoiseScaleObserver
from largebatch.observers.profile import ProfileObserver
from largebatch.observers.ranks import RankObserver
from largebatch.observers.restoring import restore
from largebatch.observers.sharpness import SharpnessObserver
from largebatch.observers.skipped import SkipNotingLoader, SkippedObserver
from largebatch.observers.stragglers import StragglerObserver
from largebatch.observers.variance import VarianceObserver

__all__ = [
    "CheckpointObserver",
    "CommunicationObserver",
    "EvaluationObserver",
    "GuardObserver",
    "Journal",
    "LayersObserver",
    "LedgerObserver",
    "MetricsObserver",
    "MicroBatchObserver",
    "NoiseScaleObserver",
    "ProfileObserver",
    "RankObserver",
    "SharpnessObserver",
    "SkipNotingLoader",
    "SkippedObserver",
    "StragglerObserver",
    "VarianceObserver",
    "WatchedLoader",
    "restore",
]
