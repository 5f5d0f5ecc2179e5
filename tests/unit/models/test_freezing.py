"""What is frozen by name, and what its batch norms do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch.models.freezing import freeze
from largebatch.models.modes import train_mode


class Net(nn.Module):
    """A backbone with norms of both kinds, a tied weight, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False))
        self.norm, self.plain = nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)
        self.head = nn.Linear(3, 4)
        self.head.weight = self.backbone[0].weight


def test_a_pattern_freezes_what_it_is_found_in_under_any_name_of_a_shared_parameter():
    model = Net()
    assert freeze(model, ["^head"]) == ["backbone.0.weight", "head.bias"]
    frozen = {name for name, one in model.named_parameters(remove_duplicate=False) if not one.requires_grad}
    assert frozen == {"backbone.0.weight", "head.weight", "head.bias"}


@pytest.mark.parametrize("holds", [True, False])
def test_norms_of_frozen_layers_keep_their_statistics_and_others_move_them(holds: bool):
    model = Net()
    freeze(model, [r"^backbone\."], holds_statistics=holds)
    train_mode(model)  # as every step of training begins
    norms = {"1": model.backbone[1], "2": model.backbone[2], "norm": model.norm, "plain": model.plain}
    for norm in norms.values():
        norm(torch.randn(8, 4) + 3)
    still = {name for name, norm in norms.items() if torch.equal(norm.running_mean, torch.zeros(4))}
    assert still == ({"1", "2"} if holds else set())


def test_a_pattern_without_effect_is_refused_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"^freeze: '\^bakbone' fits no trainable parameter.*backbone\.0\.weight"):
        freeze(Net(), ["^bakbone"])
    with pytest.raises(ValueError, match="not a regular expression"):
        freeze(Net(), ["("])
