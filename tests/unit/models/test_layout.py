"""A layout and a compilation change neither names nor values of a model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from largebatch.distributed.checksums import parameter_checksums, tensors_sha256
from largebatch.models import MLP, ConvNet, checkpoint_activations
from largebatch.models.layout import compile_blocks, keep_channels_last
from largebatch.records.checkpoint import load_checkpoint, pack_optimizer, unpack_optimizer
from largebatch.records.checkpoint.writing import write_directory


def is_channels_last(value: torch.Tensor) -> bool:
    return value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()


def stepped(channels_last: bool, steps: int = 2, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = ConvNet(5, 3, width=4).double()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options)
    if channels_last:
        keep_channels_last(model)
    assert all(parameters[name] is one for name, one in model.named_parameters()), "the optimizer holds them"
    for step in range(steps):
        model(torch.randn(6, 3, 8, 8, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
    return model, optimizer


def test_activations_after_the_first_convolution_stay_in_the_layout():
    model = ConvNet(5, 3, width=4)
    keep_channels_last(model)
    seen: list[bool] = []
    convolutions = [one for one in model.modules() if isinstance(one, nn.Conv2d)]
    for one in convolutions:
        one.register_forward_hook(lambda _, __, output: seen.append(is_channels_last(output)))
    model(torch.randn(2, 3, 8, 8))
    assert seen == [True] * len(convolutions)


def test_weights_and_momentum_are_in_the_layout_and_their_values_as_without_it():
    (model, optimizer), (plain, other) = stepped(True), stepped(False)
    weights = [one for one in model.parameters() if one.dim() == 4]
    assert all(is_channels_last(one) for one in weights)
    assert all(is_channels_last(optimizer.state[one]["momentum_buffer"]) for one in weights)
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
        buffers = optimizer.state[one]["momentum_buffer"], other.state[two]["momentum_buffer"]
        torch.testing.assert_close(*buffers, rtol=1e-10, atol=1e-12)


def test_neither_hashes_nor_checksums_depend_on_the_layout():
    model = ConvNet(5, 3, width=4)
    sums, digest = parameter_checksums(model), tensors_sha256(model.named_parameters())
    keep_channels_last(model)
    assert torch.equal(parameter_checksums(model), sums)
    assert tensors_sha256(model.named_parameters()) == digest


@pytest.mark.parametrize(("writes", "reads"), [(True, False), (False, True)])
def test_a_checkpoint_does_not_show_the_layout_and_goes_on_in_another(writes: bool, reads: bool, tmp_path: Path):
    model, optimizer = stepped(writes)
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors, values = pack_optimizer(optimizer, names)
    saved = {"model": dict(model.state_dict()), "optimizer": tensors}
    write_directory(tmp_path, step=2, tensors=saved, values={})
    read = load_checkpoint(tmp_path).tensors
    assert all(value.is_contiguous() for group in read.values() for value in group.values())
    other, its_optimizer = stepped(reads, fused=True)
    other.load_state_dict(read["model"])
    its_names: dict[torch.Tensor, str] = {parameter: name for name, parameter in other.named_parameters()}
    unpack_optimizer(its_optimizer, read["optimizer"], values, its_names)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        state = its_optimizer.state[two]["momentum_buffer"]
        assert torch.equal(one, two)
        assert torch.equal(optimizer.state[one]["momentum_buffer"], state)
        assert state.stride() == two.stride(), "fused kernels go through both in the order of memory"


def test_parametrised_and_other_weights_are_left_alone():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), nn.Conv3d(2, 2, 3))
    before = [one.stride() for one in model.parameters()]
    keep_channels_last(model)
    assert [one.stride() for one in model.parameters()] == before


def test_blocks_are_compiled_one_by_one_and_names_stay(monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[nn.Module, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **how: calls.append((module, how)))
    model = MLP(4, 3, hidden=[8, 8, 8])
    names = list(model.state_dict())
    found = compile_blocks(model, dynamic=False)
    assert found == checkpoint_activations(copy.deepcopy(model)), "the blocks of activation checkpointing"
    assert [module for module, _ in calls] == [model.get_submodule(name) for name in found]
    assert all(how == {"dynamic": False} for _, how in calls)
    assert list(model.state_dict()) == names
    with pytest.raises(ValueError, match="matches none"):
        compile_blocks(model, "layers")
