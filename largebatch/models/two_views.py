"""One encoder for both views of a sample, for contrastive losses."""

from __future__ import annotations

from torch import Tensor, nn


class TwoViews(nn.Module):
    """Run an encoder over both views of every sample: [n, 2, ...] -> representations [n, 2, d].

    The encoder sees the 2n views as one batch, the two of a sample next to each other, so batch norm statistics cover
    both views. Source: Chen et al. 2020, "A simple framework for contrastive learning", section 2.1, with encoder and
    projection head as one module.

    Args:
        encoder: [m, ...] -> [m, d].

    Raises:
        ValueError: if the inputs do not have two views per sample.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Tensor) -> Tensor:
        """Representations [n, 2, d] of `inputs` [n, 2, ...]."""
        if inputs.dim() < 3 or inputs.shape[1] != 2:
            raise ValueError(
                f"TwoViews got inputs of shape {list(inputs.shape)}: it needs [n, 2, ...], two views per sample. "
                "Choose a data set with two views, such as data=paired_views."
            )
        return self.encoder(inputs.flatten(0, 1)).unflatten(0, (len(inputs), 2))
