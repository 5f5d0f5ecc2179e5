"""The gradient of one global batch, in every way that it can be had; batch norm; snapshots."""

from typing import TYPE_CHECKING

from largebatch import lazy_names

if TYPE_CHECKING:
    from largebatch.gradient.exact_batch_norm import ExactBatchNorm
    from largebatch.gradient.global_batches import GlobalBatches
    from largebatch.gradient.options import GradientOptions, accumulate_gradients, choose_gradient
    from largebatch.gradient.step import Measures, Step

__all__ = [
    "ExactBatchNorm",
    "GlobalBatches",
    "GradientOptions",
    "Measures",
    "Step",
    "accumulate_gradients",
    "choose_gradient",
]
if not TYPE_CHECKING:  # to a type checker, a module with a __getattr__ has every name, misspelt ones too
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "options": "GradientOptions accumulate_gradients choose_gradient",
            "exact_batch_norm": "ExactBatchNorm",
            "global_batches": "GlobalBatches",
            "step": "Measures Step",
        },
    )
