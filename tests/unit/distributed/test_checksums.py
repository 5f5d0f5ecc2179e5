"""Fingerprints of tensors against their definition."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from largebatch.distributed import checksums as fingerprint
from largebatch.distributed.checksums import checksums, combine_checksums, parameter_checksums, tensors_sha256


def module_of(*tensors: torch.Tensor) -> nn.Module:
    module = nn.Module()
    for number, tensor in enumerate(tensors):
        module.register_parameter(f"p{number}", nn.Parameter(tensor, requires_grad=False))
    return module


def test_sha256_is_that_of_names_types_shapes_and_bytes_in_the_order_of_names():
    a, b = torch.tensor([1.0, -2.5]), torch.tensor([[3, 4]], dtype=torch.int64)
    expected = hashlib.sha256(
        b"a\0torch.float32\0(2,)\0" + np.array([1.0, -2.5], dtype="<f4").tobytes()
        + b"b\0torch.int64\0(1, 2)\0" + np.array([3, 4], dtype="<i8").tobytes()
    ).hexdigest()  # fmt: skip
    assert tensors_sha256([("b", b), ("a", a)]) == expected
    assert tensors_sha256([("a", b), ("b", a)]) != expected
    assert tensors_sha256([("a", a), ("b", b.T)]) != expected, "the shape counts"


@pytest.mark.parametrize("chunk", [2, 3, 2**18])
def test_a_checksum_is_the_sum_of_words_with_odd_factors(monkeypatch, chunk):
    monkeypatch.setattr(fingerprint, "_CHUNK", chunk)
    values = torch.tensor([[1.5, -0.0, 3e38], [1e-40, float("nan"), -7.25], [0.1, 0.2, 0.3]])
    words = np.frombuffer(values.numpy().tobytes() + bytes(4), dtype="<i8").tolist()
    expected = sum((2 * (place // chunk) + 1) * (2 * (place % chunk) + 1) * x for place, x in enumerate(words)) % 2**64
    for held in (values, torch.cat([torch.zeros(1), values.reshape(-1)])[1:].view(3, 3)):  # wherever it begins
        (found,) = parameter_checksums(module_of(held)).tolist()
        assert found % 2**64 == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_one_bit_of_one_element_changes_the_checksum_and_its_parameter_is_known(dtype):
    torch.manual_seed(0)
    tensors = [torch.randn(5, 3).to(dtype), torch.randn(()).to(dtype), torch.randn(4).to(dtype)]
    before = parameter_checksums(module_of(*tensors))
    assert torch.equal(before, parameter_checksums(module_of(*(tensor.clone() for tensor in tensors))))
    transposed = tensors[0].T.contiguous().T
    assert torch.equal(before[0], parameter_checksums(module_of(transposed))[0]), "strides do not count"
    for number, tensor in enumerate(tensors):
        bits = tensor.view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)
        for place in range(bits.numel()):
            bits.view(-1)[place] ^= 1
            after = parameter_checksums(module_of(*tensors))
            assert (after != before).nonzero().tolist() == [[number]]
            assert combine_checksums(after) != combine_checksums(before)
            bits.view(-1)[place] ^= 1


def test_exchanged_elements_and_exchanged_parameters_are_seen():
    one, other = (
        parameter_checksums(module_of(torch.tensor([1.0, 2.0]))),
        parameter_checksums(module_of(torch.tensor([2.0, 1.0]))),
    )
    assert one != other
    assert combine_checksums(torch.cat([one, other])) != combine_checksums(torch.cat([other, one]))


def test_an_empty_tensor_has_the_checksum_0():
    assert checksums([torch.zeros(0, 3), torch.zeros(())]).tolist() == [0, 0]
    assert combine_checksums(checksums([torch.zeros(0)])) == 0
