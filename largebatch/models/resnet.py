"""Residual networks: the reference models of large-batch training on images."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from largebatch.models.arguments import require_counts
from largebatch.models.initialization import initialize_conv_net

STEMS = ("imagenet", "cifar")


class ResNet(nn.Module):
    """Residual network of He et al. 2016 as trained by Goyal et al. 2017: [n, C, H, W] -> [n, num_classes].

    All residual blocks are in one sequence, `blocks`, in forward order. Blocks of the four stages have 64, 128, 256 and
    512 channels (times 4 at the end of a bottleneck). The first block of every later stage halves the resolution in its
    3x3 convolution, as in Goyal et al. and torchvision; He et al. stride the 1x1.

    Initial weights: convolutions He normal, fan out; gamma 1, but 0 in the last batch norm of every residual block, so
    that every block starts as the identity; fully connected N(0, 0.01^2). Source: Goyal et al. 2017, section 5.1. Use
    `resnet18` and `resnet50` to build one.

    Args:
        residual: builds the residual branch of a block from (in_channels, channels, stride).
        expansion: output channels of a block divided by its `channels`.
        blocks_per_stage: number of blocks of each stage.
        num_classes: outputs.
        in_channels: channels of the images.
        stem: "imagenet" (7x7 stride 2 and max pooling: resolution / 4) or "cifar" (3x3: resolution kept, for 32x32).
        zero_init_last_gamma: start the last gamma of every residual block at 0; False starts every gamma at 1.

    Raises:
        ValueError: if a count is below 1 or the stem is unknown.
    """

    def __init__(
        self,
        residual: Callable[[int, int, int], nn.Sequential],
        expansion: int,
        *,
        blocks_per_stage: tuple[int, ...],
        num_classes: int,
        in_channels: int,
        stem: str,
        zero_init_last_gamma: bool,
    ) -> None:
        super().__init__()
        require_counts(num_classes=num_classes, in_channels=in_channels)
        self.stem = _stem(stem, in_channels)
        blocks: list[ResidualBlock] = []
        width = 64
        for stage, num_blocks in enumerate(blocks_per_stage):
            channels = 64 * 2**stage
            for number in range(num_blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                branch = residual(width, channels, stride)
                blocks.append(ResidualBlock(branch, _shortcut(width, expansion * channels, stride)))
                width = expansion * channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, num_classes)
        initialize_conv_net(self)
        if zero_init_last_gamma:
            for block in blocks:
                nn.init.zeros_(block.last_norm.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, num_classes] of `images` [n, in_channels, H, W]."""
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


class ResidualBlock(nn.Module):
    """ReLU(residual(x) + shortcut(x)), where the residual branch ends with a batch norm."""

    def __init__(self, residual: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm whose gamma scales the whole residual branch."""
        norm = self.residual[-1]
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, in_channels, H, W] -> [n, out_channels, H / stride, W / stride]."""
        return self.relu(self.residual(inputs) + self.shortcut(inputs))


def resnet18(
    num_classes: int, in_channels: int = 3, *, stem: str = "imagenet", zero_init_last_gamma: bool = True
) -> ResNet:
    """ResNet-18: 8 basic blocks, 11,689,512 parameters with the ImageNet stem and 1,000 classes."""
    return ResNet(
        _basic,
        expansion=1,
        blocks_per_stage=(2, 2, 2, 2),
        num_classes=num_classes,
        in_channels=in_channels,
        stem=stem,
        zero_init_last_gamma=zero_init_last_gamma,
    )


def resnet50(
    num_classes: int, in_channels: int = 3, *, stem: str = "imagenet", zero_init_last_gamma: bool = True
) -> ResNet:
    """ResNet-50: 16 bottleneck blocks, 25,557,032 parameters with the ImageNet stem and 1,000 classes."""
    return ResNet(
        _bottleneck,
        expansion=4,
        blocks_per_stage=(3, 4, 6, 3),
        num_classes=num_classes,
        in_channels=in_channels,
        stem=stem,
        zero_init_last_gamma=zero_init_last_gamma,
    )


def _stem(stem: str, in_channels: int) -> nn.Sequential:
    if stem not in STEMS:
        raise ValueError(f"stem={stem!r}: choose one of {', '.join(STEMS)}. Use cifar for images of about 32x32.")
    if stem == "cifar":
        return nn.Sequential(*_conv_norm(in_channels, 64, kernel_size=3), nn.ReLU(inplace=True))
    return nn.Sequential(
        *_conv_norm(in_channels, 64, kernel_size=7, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )


def _basic(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *_conv_norm(in_channels, channels, kernel_size=3, stride=stride),
        nn.ReLU(inplace=True),
        *_conv_norm(channels, channels, kernel_size=3),
    )


def _bottleneck(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *_conv_norm(in_channels, channels, kernel_size=1),
        nn.ReLU(inplace=True),
        *_conv_norm(channels, channels, kernel_size=3, stride=stride),
        nn.ReLU(inplace=True),
        *_conv_norm(channels, 4 * channels, kernel_size=1),
    )


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(*_conv_norm(in_channels, out_channels, kernel_size=1, stride=stride))


def _conv_norm(in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels)]
