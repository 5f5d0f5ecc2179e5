"""A layout and a compilation change neither names nor values of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from largebatch.distributed.checksums import parameter_checksums, tensors_sha256
from largebatch.models import MLP, ConvNet, checkpoint_activations
from largebatch.models.checkpointing import BLOCKS, matching_modules
from largebatch.models.layout import compile_modules, keep_channels_last
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


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many graphs torch has compiled; it traces and runs them, and makes no code."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    return lambda: counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("kind", [nn.Sequential, ConvNet], ids=["of torch", "of one's own"])
def test_a_model_is_compiled_whoever_has_written_its_forward(kind: type, graphs: Callable[[], int]):
    """`nn.Module.compile` compiles nothing of an nn.Sequential, and does not say so."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()) if kind is nn.Sequential else ConvNet(5, 3, width=4)
    inputs = torch.randn(2, 4) if kind is nn.Sequential else torch.randn(2, 3, 8, 8)
    names, plain = list(model.state_dict()), copy.deepcopy(model)
    compile_modules([model], dynamic=False)
    torch.testing.assert_close(model(inputs), plain(inputs))
    assert graphs() == 1
    assert list(model.state_dict()) == names
    copy.deepcopy(model)(inputs)
    assert graphs() == 1, "a copy computes its own weights, uncompiled"


def test_blocks_of_one_structure_share_code_and_others_do_not_use_up_its_limit(graphs: Callable[[], int]):
    """Torch stops compiling, with a warning, after 8 versions of one code object."""
    alike = MLP(8, 3, hidden=[8] * 12)
    blocks = matching_modules(alike, BLOCKS)
    assert list(blocks) == checkpoint_activations(copy.deepcopy(alike)), "the blocks of activation checkpointing"
    compile_modules(blocks.values(), dynamic=False)
    alike(torch.randn(2, 8)).sum().backward()
    assert graphs() == 2, "inputs of the first block need no gradient"
    different = MLP(8, 3, hidden=list(range(8, 18)))
    compile_modules(matching_modules(different, BLOCKS).values(), dynamic=False)
    different(torch.randn(2, 8)).sum().backward()
    assert graphs() == 2 + 10
