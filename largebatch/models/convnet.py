"""Small convolutional network with batch norm, for experiments that take seconds."""

from __future__ import annotations

from torch import Tensor, nn

from largebatch.models.arguments import require_counts
from largebatch.models.initialization import initialize_conv_net


class ConvNet(nn.Module):
    """Three stages of convolution, batch norm and ReLU, then global average pooling: [n, C, H, W] -> [n, num_classes].

    The stages have `width`, 2 `width` and 4 `width` channels; the last two halve the resolution. Any image of at least
    2x2 pixels fits, since pooling is global: 8x8 digits and 32x32 CIFAR images use the same network. Initial weights
    follow Goyal et al. 2017.

    Batch norm makes the loss depend on the micro-batch size, on purpose: this is the smallest model in which a change
    of the micro-batch shows.

    Args:
        num_classes: outputs.
        in_channels: channels of the images, 1 for digits and 3 for CIFAR.
        width: channels of the first stage.

    Raises:
        ValueError: if a count is below 1.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, width: int = 16) -> None:
        super().__init__()
        require_counts(num_classes=num_classes, in_channels=in_channels, width=width)
        self.blocks = nn.Sequential(
            _stage(in_channels, width, stride=1),
            _stage(width, 2 * width, stride=2),
            _stage(2 * width, 4 * width, stride=2),
        )
        self.head = nn.Linear(4 * width, num_classes)
        initialize_conv_net(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, num_classes] of `images` [n, in_channels, H, W]."""
        return self.head(self.blocks(images).mean(dim=(2, 3)))


def _stage(in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
