"""Weights of a file in a model: what fits, what is left, and names with prefixes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from largebatch.models.start_weights import fit_weights, likely_prefixes, part_of


class Net(nn.Module):
    """A norm with a count, a shared weight, and a head."""

    def __init__(self, num_outputs: int = 3) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.twin, self.head = nn.Linear(4, 4), nn.Linear(4, num_outputs)
        self.twin.weight = self.stem.weight


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    model = Net()
    model.norm(torch.randn(8, 4))
    return dict(model.state_dict())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str, state: dict[str, Tensor]):
    model = Net()
    fitted = fit_weights(model, {prefix + name: one for name, one in state.items()})
    assert (fitted.loaded, fitted.total, fitted.left) == (len(state), len(state), [])
    assert fitted.prefix == prefix.replace("_orig_mod.", "")
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())


def test_what_does_not_fit_stays_as_it_was_and_is_told(state: dict[str, Tensor]):
    model = Net(num_outputs=5)
    head = model.head.weight.detach().clone()
    state = {name: one for name, one in state.items() if name != "norm.weight"} | {"fc.weight": torch.zeros(1)}
    fitted = fit_weights(model, state)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.stem.weight, state["stem.weight"])
    assert (fitted.missing, fitted.unexpected) == (("norm.weight",), ("fc.weight",))
    assert fitted.misfits[0] == "head.weight: [3, 4] in the file, [5, 4] in the model"
    assert fitted.loaded == fitted.total - 3


def test_a_shared_tensor_may_stand_under_one_of_its_names(state: dict[str, Tensor]):
    fitted = fit_weights(Net(), {name: one for name, one in state.items() if name != "twin.weight"})
    assert fitted.left == []
    assert fitted.loaded == fitted.total


def test_the_model_keeps_its_number_format(state: dict[str, Tensor]):
    model = Net().double()
    fitted = fit_weights(model, {name: one.half() if one.is_floating_point() else one for name, one in state.items()})
    assert fitted.converted == ("float16",)
    assert torch.equal(model.stem.weight, state["stem.weight"].half().double())


def test_one_of_several_networks_of_a_file_goes_into_a_part_of_the_model(state: dict[str, Tensor]):
    other = {name: one + 1 for name, one in state.items()}
    file = {f"q.{name}": one for name, one in state.items()} | {f"k.{name}": one for name, one in other.items()}
    model = nn.ModuleDict({"backbone": Net(), "top": nn.Linear(3, 2)})
    top = model["top"].weight.detach().clone()
    assert likely_prefixes(file, state) == [("q.", len(state)), ("k.", len(state))]
    assert likely_prefixes(model.state_dict(), state) == [("backbone.", len(state))]
    fitted = fit_weights(model, part_of(file, "k."), into="backbone.")
    assert (fitted.loaded, fitted.total, fitted.left) == (len(state), len(state) + 2, [])
    assert torch.equal(model["backbone"].head.weight, other["head.weight"])
    assert torch.equal(model["top"].weight, top)
    lacks = {name: one for name, one in state.items() if name != "head.bias"}
    assert fit_weights(model, lacks, into="backbone.").missing == ("backbone.head.bias",)
