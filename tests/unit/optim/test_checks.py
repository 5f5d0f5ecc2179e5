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
    ("adapt_undecayed", 0),
]
LARS_ERRORS = [
    ("momentum", 1.0),
    ("momentum", -0.1),
    ("trust_coefficient", 0.0),
    ("trust_coefficient", -1e-3),
    ("denominator", "both"),
    ("denominator", None),
    ("lr_placement", "before"),
    ("nesterov", 1),
    ("clip", None),
    ("eps", -1e-8),
]
LAMB_ERRORS = [
    ("betas", (1.0, 0.999)),
    ("betas", (0.9, 1.0)),
    ("betas", (-0.1, 0.9)),
    ("betas", (0.9,)),
    ("betas", 0.9),
    ("eps", -1e-6),
    ("bias_correction", 1),
    ("decay_placement", "coupled"),
    ("norm_bounds", 10.0),
    ("norm_bounds", (0.0,)),
    ("norm_bounds", (2.0, 1.0)),
    ("norm_bounds", (-1.0, 1.0)),
    ("norm_bounds", (0.0, 0.0)),
    ("norm_bounds", (0.0, float("inf"))),
    ("trust_clip", "true"),
    ("max_grad_norm", 0.0),
    ("max_grad_norm", float("inf")),
    ("max_grad_norm", True),
    ("grad_averaging", 0),
]
GOOD_VALUES = {
    "lr": 0.1,
    "weight_decay": 0.0,
    "adapts": True,
    "momentum": 0.9,
    "trust_coefficient": 0.001,
    "betas": (0.9, 0.999),
    "eps": 1e-6,
    "denominator": "split",
    "lr_placement": "inside",
    "nesterov": False,
    "clip": False,
    "adapt_undecayed": True,
    "bias_correction": True,
    "decay_placement": "inside",
    "norm_bounds": None,
    "trust_clip": False,
    "max_grad_norm": None,
    "grad_averaging": True,
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


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [(LARS, {"momentum": 0.0, "nesterov": True}), (LAMB, {"betas": (0.0, 0.999), "grad_averaging": False})],
)
def test_an_option_that_another_leaves_without_effect_is_refused(optimizer_class, options):
    with pytest.raises(ValueError, match=r"^(nesterov|grad_averaging)=.* has no effect at .*Leave it out\.$"):
        optimizer_class([torch.nn.Parameter(torch.ones(2))], lr=0.1, **options)
    first, second = options.items()
    optimizer = optimizer_class([torch.nn.Parameter(torch.ones(2))], lr=0.1, **dict([second]))
    with pytest.raises(ValueError, match="has no effect"):  # in a group that comes later, which is then not added
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], **dict([first])})
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
