from __future__ import annotations

import pytest
import torch

from largebatch.distributed.pending_sum import PendingSum
from largebatch.gradient.units import Counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("units", [[3.0, 0.0, 7.0], [0.5, 0.25, 1.75], [0.0, 0.0, 0.0]])
def test_a_weight_that_only_the_device_knows_gives_the_same_gradient(units: list[float], dtype: torch.dtype):
    """To the last bit: the loss of a GPU run is multiplied by a tensor, that of a CPU run by a number."""
    summed = torch.tensor(units, dtype=torch.float64)
    gradients = []
    for counted in (Counted(PendingSum(summed)), Counted(PendingSum(summed), summed)):
        inputs = torch.linspace(-1, 1, 11, dtype=dtype, requires_grad=True)
        (inputs.square().sum() * counted.weight(8.0)).backward()
        gradients.append(inputs.grad)
    assert isinstance(counted.weight(8.0), torch.Tensor)
    assert torch.equal(*gradients)
