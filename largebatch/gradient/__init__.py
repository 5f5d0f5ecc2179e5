"""The gradient of one global batch, in every way that it can be had; batch norm; snapshots."""

from typing import TYPE_CHECKING

from largebatch import lazy_names

if TYPE_CHECKING:
    from largebatch.gradient.accumulation import accumulate_gradients
    from largebatch.gradient.exact_batch_norm import ExactBatchNorm
    from largebatch.gradient.global_gradient import GlobalGradient

__all__ = ["ExactBatchNorm", "GlobalGradient", "accumulate_gradients"]
__getattr__, __dir__ = lazy_names(
    __name__,
    {"accumulation": "accumulate_gradients", "exact_batch_norm": "ExactBatchNorm", "global_gradient": "GlobalGradient"},
)
