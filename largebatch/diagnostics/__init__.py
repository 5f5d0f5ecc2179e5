from largebatch.diagnostics.bootstrap import Interval
from largebatch.diagnostics.communication import (
    StepCommunication,
    TransferFit,
    communication_of_step,
    fit_transfer,
    probe_sizes,
)
from largebatch.diagnostics.gap import EvalSums, GeneralizationGap, generalization_gap
from largebatch.diagnostics.gap_parts import GapParts, Part, PerSample, decompose_gap
from largebatch.diagnostics.large_batch_gap import MATCHES, Evaluations, LargeBatchGap, large_batch_gap
from largebatch.diagnostics.lr_range import RangeCurve, RangeSettings, walk_rates
from largebatch.diagnostics.lr_suggestion import Reading, Suggestion, mean_rate, read_curve, scaling_exponent, suggest
from largebatch.diagnostics.noise_scale import NoiseScale, NoiseScaleEstimator, moments_of_step
from largebatch.diagnostics.stability import Momentum, momentum_of, stability_limit
from largebatch.diagnostics.stragglers import IN_A_ROW, RankTimes, StragglerWatch, compare_ranks

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
