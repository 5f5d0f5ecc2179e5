from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from largebatch.models import GPT, MLP, ConvNet, checkpoint_activations, resnet18


def gpt(dropout: float = 0.0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = GPT(11, 8, num_layers=3, num_heads=2, width=12, dropout=dropout).double()
    return model, torch.randint(11, (4, 8))


def convnet() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return ConvNet(10, 1, width=4).double(), torch.randn(6, 1, 8, 8, dtype=torch.float64)


def resnet() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = resnet18(10, 1, stem="cifar", zero_init_last_gamma=False).double()
    return model, torch.randn(2, 1, 8, 8, dtype=torch.float64)


def mlp_with_dropout() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return MLP(9, 5, hidden=[16, 16], dropout=0.5).double(), torch.randn(6, 9, dtype=torch.float64)


def cumulative_norm() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None))})
    model.forward = lambda inputs: model["blocks"](inputs)  # type: ignore[method-assign]
    return model.double(), torch.randn(6, 3, dtype=torch.float64)


def train_two_steps(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Everything that two micro-batches leave behind: gradients, buffers, and the state of the random generator."""
    torch.manual_seed(1)
    for scale in (1.0, 2.0):
        micro_batch = inputs * scale if inputs.is_floating_point() else inputs
        model(micro_batch).square().sum().backward()
    left = {name: parameter.grad for name, parameter in model.named_parameters()}
    return left | dict(model.named_buffers()) | {"generator": torch.get_rng_state()}


@pytest.mark.parametrize("build", [gpt, lambda: gpt(dropout=0.3), convnet, resnet, mlp_with_dropout, cumulative_norm])
def test_checkpointed_training_is_bitwise_equal(build: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    model, inputs = build()
    expected = train_two_steps(model, inputs)
    checkpointed, inputs = build()
    assert checkpoint_activations(checkpointed)
    found = train_two_steps(checkpointed, inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value is not None
        assert torch.equal(found[name], value), name


def test_batch_norm_counts_each_batch_once() -> None:
    model, inputs = convnet()
    checkpoint_activations(model)
    train_two_steps(model, inputs)
    counts = {name: buffer for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert len(counts) == 3
    assert all(count.item() == 2 for count in counts.values())
    assert {norm.momentum for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.1}


def test_a_kept_graph_can_be_recomputed_twice() -> None:
    model, inputs = convnet()
    checkpoint_activations(model)
    loss = model(inputs).square().sum()
    loss.backward(retain_graph=True)
    once = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, 2 * once[name]), name  # doubling is exact in floating point
    assert model.blocks[0][1].num_batches_tracked.item() == 1


def test_dropout_draws_the_same_mask_in_forward_and_recomputation() -> None:
    # Recomputation stops with the last tensor that backward needs, so dropout stands before something that saves one.
    model = nn.ModuleDict({"blocks": nn.Sequential(*(nn.Sequential(nn.Dropout(0.5), nn.Tanh()) for _ in range(2)))})
    checkpoint_activations(model)
    masks: dict[nn.Module, list[Tensor]] = {block[0]: [] for block in model["blocks"]}
    for dropout in masks:
        dropout.register_forward_hook(lambda module, _, output: masks[module].append((output != 0).detach().clone()))
    model["blocks"](torch.ones(8, 8, requires_grad=True)).sum().backward()
    (first, first_again), (second, second_again) = masks.values()
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)
    assert not torch.equal(first, second)


def saved_activation_bytes(model: nn.Module, inputs: Tensor) -> int:
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(inputs).sum()
        num_bytes = sum(storages.values())  # while the graph is alive, so that no address is used twice
    loss.backward()
    return num_bytes


def test_a_checkpointed_block_saves_its_input_and_nothing_else() -> None:
    model, _ = gpt()
    blocks = nn.ModuleDict({"blocks": nn.Sequential(*model.blocks)})
    stream = torch.randn(4, 8, 12, dtype=torch.float64)
    plain = saved_activation_bytes(blocks["blocks"], stream)
    checkpoint_activations(blocks)
    checkpointed = saved_activation_bytes(blocks["blocks"], stream)
    one_input = stream.numel() * stream.element_size()
    assert checkpointed == 3 * one_input
    # Per block at least: both norms' outputs, query, key, value, attention, two of width 4: far above 8 inputs.
    assert plain > 3 * 8 * one_input


def test_module_tree_and_state_dict_do_not_change() -> None:
    model, _ = convnet()
    modules, state = dict(model.named_modules()), list(model.state_dict())
    assert checkpoint_activations(model) == ["blocks.0", "blocks.1", "blocks.2"]
    assert dict(model.named_modules()) == modules
    assert list(model.state_dict()) == state


def test_a_copy_of_a_checkpointed_model_computes_with_its_own_weights() -> None:
    model, inputs = convnet()
    checkpoint_activations(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert model.eval()(inputs).eq(0).all()
    assert twin.eval()(inputs).ne(0).any()


def test_evaluation_without_gradients_is_untouched() -> None:
    model, inputs = convnet()
    expected = model.eval()(inputs)
    checkpoint_activations(model)
    with torch.no_grad():
        assert torch.equal(model(inputs), expected)


@pytest.mark.parametrize(("build", "fullgraph"), [(gpt, True), (convnet, False)])
def test_a_compiled_checkpointed_model_computes_the_same(
    build: Callable[[], tuple[nn.Module, Tensor]], fullgraph: bool
) -> None:
    expected = train_two_steps(*build())
    model, inputs = build()
    checkpoint_activations(model)
    model.compile(backend="aot_eager", fullgraph=fullgraph)
    for name, value in train_two_steps(model, inputs).items():
        # Float64; the compiler may order sums differently.
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"layers\.\d+$", r"matches none of the 15 modules of ConvNet.*'blocks.0', 'blocks.0.0'"),
        (r"blocks\.\d+", r"'blocks.0.0' inside 'blocks.0'"),
        (r"^(blocks)?$", r"'blocks' inside ''"),
        (r"blocks[", r"not a regular expression"),
    ],
)
def test_pattern_that_cannot_be_meant_is_refused(pattern: str, message: str) -> None:
    model, _ = convnet()
    with pytest.raises(ValueError, match=message):
        checkpoint_activations(model, pattern)
    assert not any("forward" in vars(module) for module in model.modules())


def test_checkpointing_twice_is_refused() -> None:
    model, _ = convnet()
    checkpoint_activations(model, r"blocks\.1$")
    with pytest.raises(ValueError, match=r"'blocks.1' already has a forward"):
        checkpoint_activations(model)
    assert "forward" not in vars(model.blocks[0])
