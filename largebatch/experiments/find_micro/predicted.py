"""The largest micro-batch as `plan.memory` predicts it, to be compared with what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from largebatch.experiments.find_micro.settings import FindMicroConfig, Sizes
from largebatch.run.predicted_memory.prediction import FRAGMENTED, OUTSIDE_BYTES, NotPredictableError, predict_memory
from largebatch.run.prepare import Prepared


@dataclass(frozen=True)
class PredictedFit:
    """A prediction, made before the first step.

    Attributes:
        size: samples of the largest micro-batch that fits; None: none does, or it is not predicted.
        peak: bytes of a rank at this size; 0: none fits.
        reason: why there is no prediction; empty where there is one.
    """

    size: int | None
    peak: int = 0
    reason: str = ""


def predicted_fit(prepared: Prepared, options: FindMicroConfig, sizes: Sizes, *, is_on_gpu: bool) -> PredictedFit:
    """The prediction of `largebatch plan` for the same memory, as one of the sizes that a plan can have.

    Of a ramp it predicts the plan with the largest micro-batch.
    """
    if options.memory is not None:
        tensors = options.usable(options.memory)  # of a device that has as much for tensors
        budget = math.ceil(tensors * FRAGMENTED) + OUTSIDE_BYTES if is_on_gpu else tensors
    else:
        budget = options.usable(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    try:
        fit = predict_memory(prepared, "cuda" if is_on_gpu else "cpu", budget=budget, sizes=sizes.sizes).fit
    except NotPredictableError as error:
        return PredictedFit(None, reason=str(error))
    assert fit is not None, "joint passes were refused before"
    return PredictedFit(fit.size or None, fit.peak)
