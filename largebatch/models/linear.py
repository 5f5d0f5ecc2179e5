"""Linear model: softmax regression with `CrossEntropy`, linear regression with `SquaredError`."""

from __future__ import annotations

from torch import Tensor, nn

from largebatch.models.arguments import require_counts, require_features


class Linear(nn.Module):
    """One affine map of the flattened input: [n, ...] -> [n, num_outputs].

    Its results can be checked by hand: both losses are convex in its weights, and with `SquaredError` the Hessian does
    not depend on them. It has no repeated blocks, so there is nothing to checkpoint.

    Args:
        in_features: numbers per sample.
        num_outputs: classes, or regression targets.
        bias: add an offset per output.
        zero_init: start at weight 0 and bias 0 (softmax regression then starts at the loss log(num_outputs)), instead
            of torch's uniform draw from +- 1/sqrt(in_features).

    Raises:
        ValueError: if a count is below 1, or the inputs do not have `in_features` features.
    """

    def __init__(self, in_features: int, num_outputs: int, *, bias: bool = True, zero_init: bool = False) -> None:
        super().__init__()
        require_counts(in_features=in_features, num_outputs=num_outputs)
        self.head = nn.Linear(in_features, num_outputs, bias=bias)
        if zero_init:
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [n, num_outputs] of `inputs` [n, ...]."""
        require_features("Linear", expected=self.head.in_features, shape=inputs.shape)
        return self.head(inputs.flatten(1))
