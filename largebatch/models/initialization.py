"""Initial weights of convolutional networks."""

from __future__ import annotations

from torch import nn


def initialize_conv_net(model: nn.Module) -> None:
    """Draw the initial weights of Goyal et al. 2017, section 5.1, from torch's global generator, in place.

    Convolutions: He normal, fan out. Batch norm: gamma 1, beta 0. Fully connected layers: N(0, 0.01^2), bias 0.
    `ResNet` itself sets the gammas at the end of residual blocks to 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
