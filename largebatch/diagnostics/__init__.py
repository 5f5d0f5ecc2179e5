"""Estimators of noise, gap, sharpness, learning rate, communication and critical batch, and closed forms for tests."""

from typing import TYPE_CHECKING

from largebatch import lazy_names

if TYPE_CHECKING:
    from largebatch.diagnostics.communication.costs import (
        StepCommunication,
        TransferFit,
        communication_of_step,
        fit_transfer,
        probe_sizes,
    )
    from largebatch.diagnostics.communication.stragglers import IN_A_ROW, RankTimes, StragglerWatch, compare_ranks
    from largebatch.diagnostics.critical_batch.critical_batch import fit_critical_batch
    from largebatch.diagnostics.critical_batch.steps_to_target import StepsToTarget
    from largebatch.diagnostics.gap.evaluation import MeasuredGap, measure_gap
    from largebatch.diagnostics.gap.gap import EvalSums, GeneralizationGap, generalization_gap
    from largebatch.diagnostics.gap.gap_parts import GapParts, Part, PerSample, decompose_gap
    from largebatch.diagnostics.gap.large_batch_gap import MATCHES, Evaluations, LargeBatchGap, large_batch_gap
    from largebatch.diagnostics.intervals import Interval
    from largebatch.diagnostics.learning_rate.range_test import RangeCurve, RangeSettings, lr_range_test, walk_rates
    from largebatch.diagnostics.learning_rate.suggestion import (
        Reading,
        Suggestion,
        mean_rate,
        read_curve,
        scaling_exponent,
        suggest,
    )
    from largebatch.diagnostics.noise.measurement import measure_variance
    from largebatch.diagnostics.noise.noise_scale import NoiseScale, NoiseScaleEstimator, moments_of_step
    from largebatch.diagnostics.noise.step_moments import MeasuredStep
    from largebatch.diagnostics.noise.tracker import NoiseTracker, track
    from largebatch.diagnostics.sharpness.measurement import Sharpness, measure_sharpness
    from largebatch.diagnostics.sharpness.settings import LandscapeSettings, SharpnessSettings

_NAMES = {
    "communication.costs": "StepCommunication TransferFit communication_of_step fit_transfer probe_sizes",
    "communication.stragglers": "IN_A_ROW RankTimes StragglerWatch compare_ranks",
    "critical_batch.critical_batch": "fit_critical_batch",
    "critical_batch.steps_to_target": "StepsToTarget",
    "gap.evaluation": "MeasuredGap measure_gap",
    "gap.gap": "EvalSums GeneralizationGap generalization_gap",
    "gap.gap_parts": "GapParts Part PerSample decompose_gap",
    "gap.large_batch_gap": "Evaluations LargeBatchGap MATCHES large_batch_gap",
    "intervals": "Interval",
    "learning_rate.range_test": "RangeCurve RangeSettings lr_range_test walk_rates",
    "learning_rate.suggestion": "Reading Suggestion mean_rate read_curve scaling_exponent suggest",
    "noise.measurement": "measure_variance",
    "noise.noise_scale": "NoiseScale NoiseScaleEstimator moments_of_step",
    "noise.step_moments": "MeasuredStep",
    "noise.tracker": "NoiseTracker track",
    "sharpness.measurement": "Sharpness measure_sharpness",
    "sharpness.settings": "LandscapeSettings SharpnessSettings",
}
__all__ = [
    "IN_A_ROW", "MATCHES", "EvalSums", "Evaluations", "GapParts", "GeneralizationGap", "Interval", "LandscapeSettings",
    "LargeBatchGap", "MeasuredGap", "MeasuredStep", "NoiseScale", "NoiseScaleEstimator", "NoiseTracker", "Part",
    "PerSample", "RangeCurve", "RangeSettings", "RankTimes", "Reading", "Sharpness", "SharpnessSettings",
    "StepCommunication", "StepsToTarget", "StragglerWatch", "Suggestion", "TransferFit", "communication_of_step",
    "compare_ranks", "decompose_gap", "fit_critical_batch", "fit_transfer", "generalization_gap", "large_batch_gap",
    "lr_range_test", "mean_rate", "measure_gap", "measure_sharpness", "measure_variance", "moments_of_step",
    "probe_sizes", "read_curve", "scaling_exponent", "suggest", "track", "walk_rates",
]  # fmt: skip
if not TYPE_CHECKING:  # to a type checker, a module with a __getattr__ has every name, misspelt ones too
    __getattr__, __dir__ = lazy_names(__name__, _NAMES)
