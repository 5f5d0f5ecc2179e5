"""Fully connected network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from largebatch.models.arguments import require_counts, require_dropout, require_features


class MLP(nn.Module):
    """Fully connected ReLU network of the flattened input: [n, ...] -> [n, num_classes].

    Every hidden layer is one block: linear, ReLU, dropout. Hidden weights are He normal (He et al. 2015, equation 10),
    hidden biases 0; the last layer keeps torch's uniform draw from +- 1/sqrt(fan in).

    Args:
        in_features: numbers per sample.
        num_classes: outputs.
        hidden: widths of the hidden layers, from input to output.
        dropout: probability of dropping a hidden unit while training.

    Raises:
        ValueError: if `hidden` is empty, a count is below 1, `dropout` is outside [0, 1), or the inputs do not have
            `in_features` features.
    """

    def __init__(self, in_features: int, num_classes: int, *, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        if len(hidden) == 0:
            raise ValueError("hidden=[]: an MLP needs at least one hidden layer. Use Linear for a model without one.")
        require_counts(in_features=in_features, num_classes=num_classes)
        require_counts(**{f"hidden[{number}]": width for number, width in enumerate(hidden)})
        require_dropout(dropout)
        self.in_features = in_features
        fan_ins = [in_features, *hidden[:-1]]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(fan_in, width), nn.ReLU(), nn.Dropout(dropout))
                for fan_in, width in zip(fan_ins, hidden, strict=True)
            )
        )
        self.head = nn.Linear(hidden[-1], num_classes)
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [n, num_classes] of `inputs` [n, ...]."""
        require_features("MLP", expected=self.in_features, shape=inputs.shape)
        return self.head(self.blocks(inputs.flatten(1)))
