"""What PowerSGD cannot compress is refused before the first step."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from largebatch.gradient.power_sgd import PowerSGD, PowerSGDOptions


@pytest.mark.parametrize("shape", [(0, 3), ()])
def test_a_trained_parameter_that_makes_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    module, runtime = nn.Linear(2, 2), cast(Any, None)
    module.nothing = nn.Parameter(torch.zeros(shape))
    with pytest.raises(ValueError, match="1 trained parameters have no dimension or no elements: nothing"):
        PowerSGD(runtime, PowerSGDOptions(), module)
    module.nothing.requires_grad_(False)
    PowerSGD(runtime, PowerSGDOptions(), module)
