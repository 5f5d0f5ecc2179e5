"""What watches a run: metrics, evaluation, noise scale, sharpness, communication, checkpoints, layers, ledger, ranks.

Removing all of them leaves the weights bit-identical, but for those that end a run or let its batch grow.
"""

from largebatch.training.observers.checkpoints import CheckpointObserver
from largebatch.training.observers.communication import CommunicationObserver
from largebatch.training.observers.early_stopping import EarlyStoppingObserver
from largebatch.training.observers.evaluation import EvaluationObserver
from largebatch.training.observers.growth import GrowthObserver
from largebatch.training.observers.guard import GuardObserver
from largebatch.training.observers.layers import LayersObserver
from largebatch.training.observers.ledger import LedgerObserver
from largebatch.training.observers.metrics import MetricsObserver
from largebatch.training.observers.micro_batches import MicroBatchObserver
from largebatch.training.observers.noise_scale import NoiseScaleObserver
from largebatch.training.observers.profile import ProfileObserver
from largebatch.training.observers.ranks import RankObserver
from largebatch.training.observers.restoring import restore
from largebatch.training.observers.sharpness import SharpnessObserver
from largebatch.training.observers.skipped import SkippedObserver
from largebatch.training.observers.stragglers import StragglerObserver
from largebatch.training.row_log import RowLog

__all__ = [
    "CheckpointObserver",
    "CommunicationObserver",
    "EarlyStoppingObserver",
    "EvaluationObserver",
    "GrowthObserver",
    "GuardObserver",
    "LayersObserver",
    "LedgerObserver",
    "MetricsObserver",
    "MicroBatchObserver",
    "NoiseScaleObserver",
    "ProfileObserver",
    "RankObserver",
    "RowLog",
    "SharpnessObserver",
    "SkippedObserver",
    "StragglerObserver",
    "restore",
]
