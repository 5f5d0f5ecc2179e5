from largebatch.diagnostics.gap import EvalSums, GeneralizationGap, generalization_gap
from largebatch.diagnostics.noise_scale import NoiseScale, NoiseScaleEstimator, moments_of_step

__all__ = [
    "EvalSums",
    "GeneralizationGap",
    "NoiseScale",
    "NoiseScaleEstimator",
    "generalization_gap",
    "moments_of_step",
]
