from largebatch.diagnostics.communication.costs import (
    StepCommunication,
    TransferFit,
    communication_of_step,
    fit_transfer,
    probe_sizes,
)
from largebatch.diagnostics.communication.stragglers import IN_A_ROW, RankTimes, StragglerWatch, compare_ranks
from largebatch.diagnostics.gap.gap import EvalSums, GeneralizationGap, generalization_gap
from largebatch.diagnostics.gap.gap_parts import GapParts, Part, PerSample, decompose_gap
from largebatch.diagnostics.gap.large_batch_gap import MATCHES, Evaluations, LargeBatchGap, large_batch_gap
from largebatch.diagnostics.intervals import Interval
from largebatch.diagnostics.learning_rate.range_curve import RangeCurve, RangeSettings, walk_rates
from largebatch.diagnostics.learning_rate.stability import Momentum, momentum_of, stability_limit
from largebatch.diagnostics.learning_rate.suggestion import (
    Reading,
    Suggestion,
    mean_rate,
    read_curve,
    scaling_exponent,
    suggest,
)
from largebatch.diagnostics.noise.noise_scale import NoiseScale, NoiseScaleEstimator, moments_of_step

__all__ = [
    "IN_A_ROW",
    "MATCHES",
    "EvalSums",
    "Evaluations",
    "GapParts",
    "GeneralizationGap",
    "Interval",
    "LargeBatchGap",
    "Momentum",
    "NoiseScale",
    "NoiseScaleEstimator",
    "Part",
    "PerSample",
    "RangeCurve",
    "RangeSettings",
    "RankTimes",
    "Reading",
    "StepCommunication",
    "StragglerWatch",
    "Suggestion",
    "TransferFit",
    "communication_of_step",
    "compare_ranks",
    "decompose_gap",
    "fit_transfer",
    "generalization_gap",
    "large_batch_gap",
    "mean_rate",
    "moments_of_step",
    "momentum_of",
    "probe_sizes",
    "read_curve",
    "scaling_exponent",
    "stability_limit",
    "suggest",
    "walk_rates",
]
