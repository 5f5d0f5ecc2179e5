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
from largebatch.diagnostics.noise_scale import NoiseScale, NoiseScaleEstimator, moments_of_step

__all__ = [
    "MATCHES",
    "EvalSums",
    "Evaluations",
    "GapParts",
    "GeneralizationGap",
    "Interval",
    "LargeBatchGap",
    "NoiseScale",
    "NoiseScaleEstimator",
    "Part",
    "PerSample",
    "StepCommunication",
    "TransferFit",
    "communication_of_step",
    "decompose_gap",
    "fit_transfer",
    "generalization_gap",
    "large_batch_gap",
    "moments_of_step",
    "probe_sizes",
]
