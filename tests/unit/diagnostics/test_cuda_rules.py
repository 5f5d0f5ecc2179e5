"""Fake tensors on the CPU keep what a GPU would keep."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from largebatch.diagnostics.memory.cuda_rules import INNER, NARROW, WIDEST, autocast_of_cuda_alone, cuda_rules
from largebatch.diagnostics.memory.live_bytes import LiveBytes

SHAPE = HEADS, LENGTH, WIDTH = 2, 1024, 8
WEIGHTS = HEADS * LENGTH**2  # of attention
NUMBERS = HEADS * LENGTH * WIDTH


def test_the_exceptions_are_operations_of_cudas_autocast():
    """Torch itself lists them; what it has renamed would silently become an operation in float32."""
    names = {one.removeprefix("aten::").partition(".")[0] for one in autocast_of_cuda_alone()}
    assert names >= NARROW | WIDEST
    assert not names & INNER
    assert names >= {"exp", "layer_norm", "log_softmax", "pow", "softmax", "sum"}


def dtypes_under_autocast() -> list[torch.dtype]:
    values = torch.empty(SHAPE, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = [values.exp(), values.softmax(-1), F.layer_norm(values, [WIDTH]), values.sum(), values @ values.mT]
        return [*(one.dtype for one in found), torch.addcmul(values, values, values.float()).dtype]


def test_autocast_is_that_of_cuda_and_only_inside():
    wide, narrow = torch.float32, torch.bfloat16
    with FakeTensorMode():
        outside = dtypes_under_autocast()
        with cuda_rules():
            assert dtypes_under_autocast() == [wide, wide, wide, wide, narrow, wide]
        assert dtypes_under_autocast() == outside
    assert outside[:2] == [narrow, narrow]


def kept_by(function, dtype: torch.dtype) -> int:
    """Bytes that are alive for the backward pass, output included."""
    with FakeTensorMode(), cuda_rules(), LiveBytes() as memory:
        inputs = torch.empty(1, *SHAPE, dtype=dtype, requires_grad=True)
        before = memory.live
        output = function(inputs)
        assert output.requires_grad
        return memory.live - before


def attention(values: Tensor, **options: object) -> Tensor:
    return F.scaled_dot_product_attention(values, values, values, **options)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_keeps_its_output_and_one_number_per_query(dtype: torch.dtype, dropout: float):
    """With dropout, too, where the CPU would keep all weights."""
    kept = kept_by(lambda values: attention(values, dropout_p=dropout, is_causal=True), dtype)
    assert kept == pytest.approx(NUMBERS * dtype.itemsize + 4 * HEADS * LENGTH, abs=64)


def test_attention_in_float64_keeps_its_weights():
    assert kept_by(attention, torch.float64) > 8 * WEIGHTS


def test_a_mask_of_attention_takes_a_bias_of_its_own_shape():
    def masked(values: Tensor) -> Tensor:
        return attention(values, attn_mask=torch.ones(LENGTH, LENGTH, dtype=torch.bool))

    assert 2 * LENGTH**2 < kept_by(masked, torch.bfloat16) < 2 * LENGTH**2 + 4 * NUMBERS


def test_dropout_keeps_a_byte_of_mask_and_nothing_in_evaluation():
    assert kept_by(lambda values: F.dropout(values, 0.1), torch.float32) == NUMBERS * (4 + 1)
    assert kept_by(lambda values: F.dropout(values, 0.1, training=False), torch.float32) == 0
