"""What LARS and LAMB refuse: numbers out of range, complex parameters, sparse gradients."""

from __future__ import annotations

import pytest
import torch

from largebatch.optim import LAMB, LARS

OPTIMIZERS = [LARS, LAMB]
both = pytest.mark.parametrize("optimizer_class", OPTIMIZERS)

SHARED_ERRORS = [
    ("lr", -0.1),
    ("lr", float("nan")),
    ("lr", float("inf")),
    ("lr", "1e-3"),
    ("lr", torch.tensor(0.1)),
    ("lr", True),
    ("weight_decay", -1e-4),
    ("weight_decay", float("inf")),
    ("weight_decay", None),
    ("adapts", 1),
    ("adapts", "false"),
]
LARS_ERRORS = [("momentum", 1.0), ("momentum", -0.1), ("trust_coefficient", 0.0), ("trust_coefficient", -1e-3)]
LAMB_ERRORS = [
    ("betas", (1.0, 0.999)),
    ("betas", (0.9, 1.0)),
    ("betas", (-0.1, 0.9)),
    ("betas", (0.9,)),
    ("betas", 0.9),
    ("eps", -1e-6),
]
GOOD_VALUES = {
    "lr": 0.1,
    "weight_decay": 0.0,
    "adapts": True,
    "momentum": 0.9,
    "trust_coefficient": 0.001,
    "betas": (0.9, 0.999),
    "eps": 1e-6,
}
ERRORS = [
    *((optimizer_class, *error) for optimizer_class in OPTIMIZERS for error in SHARED_ERRORS),
    *((LARS, *error) for error in LARS_ERRORS),
    *((LAMB, *error) for error in LAMB_ERRORS),
]


@pytest.mark.parametrize(("optimizer_class", "name", "value"), ERRORS)
def test_a_number_out_of_range_is_named_with_its_value(optimizer_class, name, value):
    options = {"lr": 0.1, name: value}
    with pytest.raises(ValueError, match=f"^{name}=") as error:
        optimizer_class([torch.nn.Parameter(torch.ones(2))], **options)
    assert repr(value) in str(error.value)
    with pytest.raises(ValueError, match=f"^{name}="):  # in a group
        optimizer_class([{"params": [torch.nn.Parameter(torch.ones(2))], **options}], lr=0.1)
    with pytest.raises(ValueError, match=f"^{name}="):  # as a default, though every group has a value of its own
        optimizer_class([{"params": [torch.nn.Parameter(torch.ones(2))], **GOOD_VALUES}], **options)
    optimizer = optimizer_class([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ValueError, match=f"^{name}="):  # in a group that comes later, which is then not added
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], **options})
    assert len(optimizer.param_groups) == 1


@both
def test_complex_parameters_are_refused_and_not_added(optimizer_class):
    optimizer = optimizer_class([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ValueError, match=r"shape \[3\] has dtype torch.complex64.*view_as_real"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1


@both
@pytest.mark.parametrize("foreach", [False, True])
def test_sparse_gradients_are_refused_before_anything_moves(optimizer_class, foreach):
    embedding = torch.nn.Embedding(4, 3, sparse=True)
    before = embedding.weight.detach().clone()
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"shape \[4, 3\] has a sparse gradient.*sparse=False"):
        optimizer_class(embedding.parameters(), lr=0.1, foreach=foreach).step()
    assert torch.equal(embedding.weight, before)
