from largebatch.diagnostics.communication import (
    StepCommunication,
    TransferFit,
    communication_of_step,
    fit_transfer,
    probe_sizes,
)
from largebatch.diagnostics.gap import EvalSums, GeneralizationGap, generalization_gap
from largebatch.diagnostics.noise_scale import NoiseScale, NoiseScaleEstimator, moments_of_step

__all__ = [
    "EvalSums",
    "GeneralizationGap",
    "NoiseScale",
    "NoiseScaleEstimator",
    "StepCommunication",
    "TransferFit",
    "communication_of_step",
    "fit_transfer",
    "generalization_gap",
    "moments_of_step",
    "probe_sizes",
]
