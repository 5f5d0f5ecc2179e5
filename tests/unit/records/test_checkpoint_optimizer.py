from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, AdamW, Muon, NAdam, Optimizer, RMSprop

from largebatch.optim import LAMB, LARS, MuonWithAdamW
from largebatch.records.checkpoint import (
    CheckpointError,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from largebatch.records.checkpoint.optimizer_fit import tensor_key

Make = Callable[[nn.Module], Optimizer]


class Counting(Optimizer):
    """State of every kind that can be saved: float32 and float64 tensors, a matrix of another shape, scalars, None."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params, {"lr": 0.1, "rule": "sum", "window": (1, 2), "limits": [0.5, None]})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update(count=0, ratio=0.1, is_warm=False, last=None, kind="new")
                    state.update(total=torch.zeros(parameter.shape), norms=torch.zeros(0, dtype=torch.float64))
                state["count"] += 1
                state["ratio"] *= 1.1
                state["is_warm"] = state["count"] > 1
                state["total"] += parameter.grad.float()
                norm = parameter.grad.double().norm().reshape(1)
                state["norms"] = torch.cat([state["norms"], norm])
                parameter -= group["lr"] * state["ratio"] * state["total"].to(parameter.dtype)


def matrices_only(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.ndim == 2]


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0, "lr": 0.3}]


OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda model: SGD(model.parameters(), lr=0.1),
    "SGD momentum": lambda model: SGD(two_groups(model), lr=0.1, momentum=0.9, nesterov=True),
    "SGD fused": lambda model: SGD(two_groups(model), lr=0.1, momentum=0.9, fused=True),
    "AdamW loop": lambda model: AdamW(two_groups(model), lr=0.1, amsgrad=True, foreach=False),
    "AdamW foreach": lambda model: AdamW(two_groups(model), lr=0.1, foreach=True),
    "AdamW fused": lambda model: AdamW(two_groups(model), lr=0.1, fused=True),
    "AdamW tensor lr": lambda model: AdamW(model.parameters(), lr=torch.tensor(0.1, dtype=torch.float64)),
    "AdamW named": lambda model: AdamW(model.named_parameters(), lr=0.1, betas=(0.8, 0.9)),
    "NAdam": lambda model: NAdam(model.parameters(), lr=0.1),
    "RMSprop": lambda model: RMSprop(model.parameters(), lr=0.1, momentum=0.5, centered=True),
    "Adafactor": lambda model: Adafactor(model.parameters(), lr=0.1),
    "Muon": lambda model: Muon(matrices_only(model), lr=0.1),
    "MuonWithAdamW": lambda model: MuonWithAdamW(model.named_parameters(), lr=0.1),
    "LARS": lambda model: LARS(model.parameters(), lr=0.1),
    "LAMB": lambda model: LAMB(model.parameters(), lr=0.1),
    "own": lambda model: Counting(model.parameters()),
}


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Conv1d(4, 3, 2), nn.Linear(3, 3, bias=False))
    return model.to(dtype)


def names_of(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()


def through_disk(folder: Path, optimizer: Optimizer, names: dict[Tensor, str]) -> tuple[dict[str, Tensor], Any]:
    tensors, values = pack_optimizer(optimizer, names)
    path = save_checkpoint(folder, step=3, tensors={"optimizer": tensors}, values={"optimizer": values}, keep=1)
    loaded = load_checkpoint(path)
    return loaded.tensors["optimizer"], loaded.values["optimizer"]


def leaves(optimizer: Optimizer, names: dict[Tensor, str]) -> dict[tuple[Any, str], Any]:
    """Everything that an optimizer knows, comparable: types, dtypes, devices and bits."""
    found: dict[tuple[Any, str], Any] = {
        (names[parameter], key): facts(value)
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }
    for number, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            found[number, key] = facts([names[parameter] for parameter in value] if key == "params" else value)
    return found


def facts(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Tensor):
        return value.dtype, value.device, tuple(value.shape), value.double().reshape(-1).tolist()
    return type(value), value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_comes_back_bit_for_bit_and_training_goes_on_as_if_never_interrupted(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    make = OPTIMIZERS[name]
    model = make_model(dtype)
    optimizer = make(model)
    train(model, optimizer, range(3))
    resumed_model = make_model(dtype)
    resumed_model.load_state_dict(model.state_dict())
    resumed = make(resumed_model)

    unpack_optimizer(resumed, *through_disk(tmp_path, optimizer, names_of(model)), names_of(resumed_model))

    assert leaves(resumed, names_of(resumed_model)) == leaves(optimizer, names_of(model))
    train(model, optimizer, range(3, 6))
    train(resumed_model, resumed, range(3, 6))
    for parameter, twin in zip(model.parameters(), resumed_model.parameters(), strict=True):
        assert torch.equal(parameter, twin)
    if name != "SGD":
        fresh_model = make_model(dtype)
        train(fresh_model, make(fresh_model), range(3, 6))
        assert not all(map(torch.equal, model.parameters(), fresh_model.parameters())), "state made no difference"


def test_float32_state_of_bfloat16_parameters_is_not_rounded(tmp_path: Path) -> None:
    model = make_model(torch.bfloat16)
    optimizer = Counting(model.parameters())
    train(model, optimizer, range(3))
    resumed_model = make_model(torch.bfloat16)
    resumed = Counting(resumed_model.parameters())
    unpack_optimizer(resumed, *through_disk(tmp_path, optimizer, names_of(model)), names_of(resumed_model))
    for old, new in zip(model.parameters(), resumed_model.parameters(), strict=True):
        total = resumed.state[new]["total"]
        assert total.dtype == torch.float32
        assert torch.equal(total, optimizer.state[old]["total"])
    # What torch does with the same state, and why this exists: float32 becomes bfloat16.
    rounded = Counting(resumed_model.parameters())
    rounded.load_state_dict(optimizer.state_dict())
    assert rounded.state[new]["total"].dtype == torch.bfloat16


@pytest.mark.parametrize("option", ["fused", "capturable"])
def test_the_step_counter_follows_the_parameter_only_where_the_group_asks_for_it(option: str) -> None:
    """On the device "meta", which needs no GPU: the parameter is there, the counter may stay on the CPU."""
    model = make_model()
    optimizer = AdamW(model.parameters())
    train(model, optimizer, range(1))
    packed = pack_optimizer(optimizer, names_of(model))
    on_device = make_model().to("meta")
    resumed = AdamW(on_device.parameters())
    for is_asked_for in (False, True):
        resumed.param_groups[0][option] = is_asked_for
        unpack_optimizer(resumed, *packed, names_of(on_device))
        for entries in resumed.state.values():
            assert entries["step"].device.type == ("meta" if is_asked_for else "cpu")
            assert entries["exp_avg"].device.type == "meta"


def test_restored_state_has_the_strides_of_its_parameter_and_is_a_copy(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 4, 3)
    model.weight.data = model.weight.data.to(memory_format=torch.channels_last)
    optimizer = AdamW(model.parameters())
    train(model, optimizer, range(1))
    tensors, values = through_disk(tmp_path, optimizer, names_of(model))
    resumed = AdamW(model.parameters())
    unpack_optimizer(resumed, tensors, values, names_of(model))
    restored = resumed.state[model.weight]["exp_avg"]
    assert restored.stride() == model.weight.stride()
    before = restored.clone()
    tensors[tensor_key("weight", "exp_avg")].zero_()
    assert torch.equal(restored, before)


def test_options_are_restored_but_not_how_the_machine_computes() -> None:
    model = make_model()
    optimizer = AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.9), foreach=True)
    optimizer.param_groups[0].update(lr=0.05, initial_lr=0.2)
    tensors, values = pack_optimizer(optimizer, names_of(model))
    resumed = AdamW(model.parameters(), lr=7.0, fused=True)
    unpack_optimizer(resumed, tensors, json.loads(json.dumps(values)), names_of(model))
    group = resumed.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["betas"]) == (0.05, 0.2, (0.8, 0.9))
    assert (group["fused"], group["foreach"]) == (True, None)


def test_an_option_that_is_no_plain_value_is_listed_and_stays_as_the_optimizer_has_it() -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["rule"] = len
    tensors, values = pack_optimizer(optimizer, names_of(model))
    assert values["groups"][0]["not_saved"] == ["rule"]
    optimizer.param_groups[0]["rule"] = max
    unpack_optimizer(optimizer, tensors, values, names_of(model))
    assert optimizer.param_groups[0]["rule"] is max


def test_neither_the_order_of_parameters_nor_that_of_groups_matters() -> None:
    model = make_model()
    matrices = [(name, parameter) for name, parameter in model.named_parameters() if parameter.ndim > 1]
    rest = [(name, parameter) for name, parameter in model.named_parameters() if parameter.ndim == 1]
    optimizer = SGD([{"params": matrices, "lr": 0.3}, {"params": rest, "weight_decay": 0.1}], lr=0.1, momentum=0.9)
    train(model, optimizer, range(2))
    turned = SGD([{"params": rest[::-1]}, {"params": matrices[::-1]}], lr=9.0, momentum=0.1)
    unpack_optimizer(turned, *pack_optimizer(optimizer, names_of(model)), names_of(model))
    for parameter in model.parameters():
        expected = optimizer.state[parameter]["momentum_buffer"]
        assert torch.equal(turned.state[parameter]["momentum_buffer"], expected)
    assert [(group["lr"], group["weight_decay"]) for group in turned.param_groups] == [(0.1, 0.1), (0.3, 0.0)]
    for group in turned.param_groups:
        assert group["param_names"] == [names_of(model)[parameter] for parameter in group["params"]]


def test_names_with_slashes_and_tildes_do_not_collide(tmp_path: Path) -> None:
    class Odd(Optimizer):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for number, parameter in enumerate(self.param_groups[0]["params"]):
                self.state[parameter] = {key: torch.tensor(float(number)) for key in ("c", "b/c", "1b/c", "lr")}

    names = ["a", "a/b", "a~1b", "a~b", "a.b", "0", "~group", "~group/0", "", "/", "~"]
    parameters: list[Tensor] = [nn.Parameter(torch.zeros(())) for _ in names]
    named = dict(zip(parameters, names, strict=True))
    optimizer = Odd(parameters, {"lr": torch.tensor(99.0)})
    optimizer.step()
    resumed = Odd(parameters, {"lr": torch.tensor(0.0)})
    unpack_optimizer(resumed, *through_disk(tmp_path, optimizer, named), named)
    assert resumed.param_groups[0]["lr"] == 99.0
    for number, parameter in enumerate(parameters):
        assert all(value == number for value in resumed.state[parameter].values())
        assert len(resumed.state[parameter]) == 4


def test_stale_state_does_not_survive() -> None:
    model = make_model()
    fresh, used = AdamW(model.parameters()), AdamW(model.parameters())
    train(model, used, range(2))
    unpack_optimizer(used, *pack_optimizer(fresh, names_of(model)), names_of(model))
    assert len(used.state) == 0


# --- what does not fit is refused, and nothing is changed ---


def without_bias(model: nn.Sequential) -> nn.Sequential:
    model[0].register_parameter("bias", None)
    return model


def with_more(model: nn.Sequential) -> nn.Sequential:
    model.register_parameter("extra", nn.Parameter(torch.zeros(2)))
    return model


def wider(model: nn.Sequential) -> nn.Sequential:
    model[0] = nn.Linear(5, 6)
    return model


@pytest.mark.parametrize(
    ("change", "make", "message"),
    [
        (without_bias, AdamW, r"it lacks \[\] of the optimizer, and the optimizer lacks \['0\.bias'\] of it"),
        (with_more, AdamW, r"it lacks \['extra'\] of the optimizer, and the optimizer lacks \[\] of it"),
        (wider, AdamW, r"0\.weight \[4, 5\] in the checkpoint, \[6, 5\] in the model; 0\.bias \[4\]"),
        (lambda model: model, torch.optim.Adam, "holds the state of AdamW, the run uses Adam"),
    ],
)
def test_another_model_or_optimizer_is_refused_with_both_sides(
    change: Callable[[nn.Sequential], nn.Sequential], make: Callable[..., Optimizer], message: str
) -> None:
    model = make_model()
    optimizer = AdamW(model.parameters())
    train(model, optimizer, range(2))
    other_model = change(make_model())
    other = make(other_model.parameters(), lr=0.7)
    train(other_model, other, range(1))
    before = leaves(other, names_of(other_model))
    with pytest.raises(CheckpointError, match=message):
        unpack_optimizer(other, *pack_optimizer(optimizer, names_of(model)), names_of(other_model))
    assert leaves(other, names_of(other_model)) == before


def test_other_groups_are_refused_with_both_sides() -> None:
    model = make_model()
    one, two = SGD(model.parameters(), lr=0.1), SGD(two_groups(model), lr=0.1)
    with pytest.raises(CheckpointError, match=r"Group 0 of SGD has \['0\.bias', .*checkpoint are \[\['0\.weight', "):
        unpack_optimizer(one, *pack_optimizer(two, names_of(model)), names_of(model))


def test_a_missing_and_a_left_over_tensor_are_named() -> None:
    model = make_model()
    optimizer = AdamW(model.parameters())
    train(model, optimizer, range(1))
    tensors, values = pack_optimizer(optimizer, names_of(model))
    tensors["stray"] = tensors.pop("0.weight/exp_avg")
    with pytest.raises(CheckpointError, match=r"\['0\.weight/exp_avg'\] are missing, \['stray'\] are left over"):
        unpack_optimizer(optimizer, tensors, values, names_of(model))


def test_a_parameter_without_a_name_of_its_own_is_refused() -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(CheckpointError, match=r"shape \[4, 5\] in group 0 of SGD has no name"):
        pack_optimizer(optimizer, {})
    with pytest.raises(CheckpointError, match=r"shape \[4\] in group 0 of SGD has the name 'x' of another one"):
        pack_optimizer(optimizer, dict.fromkeys(model.parameters(), "x"))


def test_names_of_frozen_parameters_do_no_harm() -> None:
    model = make_model()
    optimizer = SGD(model[0].parameters(), lr=0.1)
    _, values = pack_optimizer(optimizer, names_of(model))
    assert list(values["groups"][0]["shapes"]) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("value", [[torch.zeros(2)], {"a": 1}, (1, 2), object()])
def test_state_that_is_neither_tensor_nor_scalar_is_refused_by_name(value: Any) -> None:
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.state[optimizer.param_groups[0]["params"][0]] = {"history": value}
    with pytest.raises(CheckpointError, match=rf"state 'history' of 0\.weight in SGD is a {type(value).__name__}"):
        pack_optimizer(optimizer, names_of(model))


class Unmeasured(Optimizer):
    """State that begins as no number: the largest so far, a value that is not known yet."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state.update(most=torch.full_like(parameter, -torch.inf), ratio=torch.tensor(torch.nan), best=math.nan)
                state["moment"] = torch.zeros_like(parameter)


def test_state_that_begins_as_no_number_may_stay_so_and_no_other_may(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(2))
    used, resumed = Unmeasured([parameter]), Unmeasured([parameter])
    used.step()
    unpack_optimizer(resumed, *through_disk(tmp_path / "sound", used, {parameter: "w"}), {parameter: "w"})
    assert resumed.state[parameter]["most"].tolist() == [-math.inf, -math.inf]
    assert math.isnan(resumed.state[parameter]["best"])
    used.state[parameter]["moment"].fill_(math.nan)
    with pytest.raises(CheckpointError, match="moment of w holds NaN"):
        unpack_optimizer(resumed, *through_disk(tmp_path / "not", used, {parameter: "w"}), {parameter: "w"})
