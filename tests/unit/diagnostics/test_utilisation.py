"""Operations of models against closed forms, and the peaks of devices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch.diagnostics.utilisation.model_flops import NotCountedError, model_flops
from largebatch.diagnostics.utilisation.peaks import peak_tflops
from largebatch.models import GPT, checkpoint_activations

CONTEXT, LAYERS, WIDTH, VOCABULARY = 16, 3, 8, 50


def gpt(*, tied: bool = True) -> GPT:
    sizes = {"num_layers": LAYERS, "num_heads": 2, "width": WIDTH}
    return GPT(VOCABULARY, CONTEXT, **sizes, dropout=0.1, tie_embeddings=tied)


def palm(weights: int) -> int:
    """Of one sequence, by appendix B of the PaLM paper: 6 N + 12 L (H Q) T per token."""
    return CONTEXT * (6 * weights + 12 * LAYERS * WIDTH * CONTEXT)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_transformer_takes_what_the_palm_paper_says_and_nothing_for_recomputation(tied: bool, checkpointed: bool):
    model = gpt(tied=tied)
    if checkpointed:
        checkpoint_activations(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    in_matrices = LAYERS * 12 * WIDTH**2 + VOCABULARY * WIDTH  # biases, norms and looked-up embeddings are no products
    assert model_flops(model, torch.zeros(1, CONTEXT, dtype=torch.int64)) == palm(in_matrices)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    assert sum("forward" in vars(one) for one in model.modules()) == (LAYERS if checkpointed else 0)


def test_frozen_blocks_need_no_gradients_of_their_weights():
    model = gpt(tied=False).requires_grad_(False)
    model.head.requires_grad_()
    forward = 2 * (LAYERS * 12 * WIDTH**2 + VOCABULARY * WIDTH) + 4 * LAYERS * WIDTH * CONTEXT
    assert model_flops(model, torch.zeros(1, CONTEXT, dtype=torch.int64)) == CONTEXT * (
        forward + 2 * VOCABULARY * WIDTH
    )


def test_a_convolution_takes_two_operations_per_tap_and_batch_norm_none():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(5, 2))
    first, second, last = 3 * 3 * 3 * 4 * 9, 3 * 3 * 4 * 5, 5 * 2  # 5x5 images: 3x3 places, then one
    # No gradient of the images: two passes over the first layer, three over the others.
    assert model_flops(net, torch.zeros(1, 3, 5, 5)) == 2 * (2 * first + 3 * second + 3 * last)


def test_several_inputs_and_outputs_by_name():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(5, 2)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"left": self.left(left), "right": self.right(right)}

    sample = {"left": torch.zeros(1, 3), "right": torch.zeros(1, 5)}
    assert model_flops(Pair(), sample) == 2 * 2 * 2 * (3 + 5)


class ByValue(nn.Linear):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return super().forward(value) if value.sum() > 0 else value


@pytest.mark.parametrize(
    ("model", "fact"),
    [
        (nn.Sequential(nn.LSTM(4, 4)), "does not count the operations of recurrent layers, such as '0'"),
        (ByValue(4, 4), "ByValue does not run without numbers"),
        (nn.BatchNorm1d(4), "torch counts no operation of BatchNorm1d"),
    ],
)
def test_what_cannot_be_counted_is_told_and_not_estimated(model: nn.Module, fact: str):
    with pytest.raises(NotCountedError, match=fact):
        model_flops(model, torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("CPU", None),
    ],
)
def test_a_device_has_the_peak_of_its_data_sheet_or_none(name: str, tflops: float | None):
    assert peak_tflops(name, "bf16") == peak_tflops(name, "fp16") == tflops
    assert peak_tflops(name, "fp32") is None
