"""Metrics of an evaluation: sums over samples, and their value; exact on any number of ranks."""

from largebatch.losses.metrics.f1 import F1
from largebatch.losses.metrics.perplexity import Perplexity
from largebatch.losses.metrics.protocol import Metric, as_metric, for_loss
from largebatch.losses.metrics.regression import R2, MeanAbsoluteError
from largebatch.losses.metrics.top_k import TopK

__all__ = ["F1", "R2", "MeanAbsoluteError", "Metric", "Perplexity", "TopK", "as_metric", "for_loss"]
