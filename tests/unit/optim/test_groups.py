"""parameter_groups: who decays, who adapts, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from largebatch.optim import LAMB, LARS, MuonWithAdamW, keep_lr_ratios, lr_factors, parameter_groups, set_lr

pytestmark = pytest.mark.quick


class Model(nn.Module):
    """A convolution, every kind of norm, attention with its odd bias name, an embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.conv = nn.Conv2d(1, 2, 3)
        self.batch = nn.SyncBatchNorm(2)
        self.instance = nn.InstanceNorm1d(2, affine=True)
        self.layer = nn.LayerNorm(8)
        self.group = nn.GroupNorm(2, 8)
        self.rms = nn.RMSNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.recurrent = nn.LSTM(8, 8)
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(3))
        self.biased = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 5)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(8, 8)
        self.frozen.requires_grad_(False)


MATRICES = ["embedding.weight", "conv.weight", "attention.in_proj_weight", "attention.out_proj.weight"]
MATRICES += ["recurrent.weight_ih_l0", "recurrent.weight_hh_l0", "biased.weight"]
NORMS = [f"{norm}.{name}" for norm in ("batch", "instance", "layer", "group") for name in ("weight", "bias")]
NORMS += ["rms.weight"]
BIASES = ["bias", "conv.bias", "attention.in_proj_bias", "attention.out_proj.bias"]
BIASES += ["recurrent.bias_ih_l0", "recurrent.bias_hh_l0", "head.bias"]


def by_flags(groups) -> dict[tuple[bool, bool], set[str]]:
    return {(group["decays"], group["adapts"]): set(group["param_names"]) for group in groups}


def test_biases_and_norms_neither_decay_nor_adapt_by_default():
    groups = parameter_groups(Model(), weight_decay=0.1)
    assert by_flags(groups) == {(True, True): {"scale", *MATRICES}, (False, False): {*NORMS, *BIASES}}
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_decay_and_adaptation_have_their_own_lists():
    groups = parameter_groups(
        Model(),
        weight_decay=0.1,
        exclude_from_decay=["norm", r"^embedding"],
        exclude_from_adaptation=["bias", r"embed", r"\.in_proj"],
    )
    assert by_flags(groups) == {
        (True, True): {"scale", *MATRICES} - {"embedding.weight", "attention.in_proj_weight"},
        (True, False): {*BIASES, "attention.in_proj_weight"},
        (False, True): {name for name in NORMS if name.endswith("weight")},
        (False, False): {name for name in NORMS if name.endswith("bias")} | {"embedding.weight"},
    }
    assert [(group["weight_decay"], group["adapts"]) for group in groups] == [
        (0.1, True),
        (0.1, False),
        (0.0, True),
        (0.0, False),
    ]


def test_every_trainable_parameter_is_in_one_group_under_its_own_name():
    model = Model()
    groups = parameter_groups(model, weight_decay=0.1)
    listed = [pair for group in groups for pair in zip(group["param_names"], group["params"], strict=True)]
    trainable = {name: param for name, param in model.named_parameters() if param.requires_grad}
    assert len(listed) == len(trainable)
    assert all(trainable[name] is param for name, param in listed)
    order = list(trainable)
    for group in groups:
        assert group["param_names"] == sorted(group["param_names"], key=order.index)


def test_a_shared_parameter_is_excluded_by_any_of_its_names():
    groups = parameter_groups(Model(), weight_decay=0.1, exclude_from_decay=[r"^head\.weight$"])
    assert by_flags(groups)[False, True] == {"embedding.weight"}


def test_empty_lists_exclude_nothing_and_kinds_may_fit_nothing():
    bare = nn.Linear(3, 2, bias=False)
    for entries in ([], ["bias", "norm"]):
        groups = parameter_groups(bare, weight_decay=0.1, exclude_from_decay=entries, exclude_from_adaptation=entries)
        assert by_flags(groups) == {(True, True): {"weight"}}


def test_without_decay_the_groups_still_say_who_would_decay():
    groups = parameter_groups(Model(), weight_decay=0.0)
    assert [(group["decays"], group["weight_decay"]) for group in groups] == [(True, 0.0), (False, 0.0)]


@pytest.mark.parametrize(
    "optimizer_class",
    [LARS, LAMB, MuonWithAdamW, torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam],
)
def test_optimizers_take_the_groups_and_carry_every_key(optimizer_class):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    groups = parameter_groups(model, weight_decay=0.1, exclude_from_adaptation=["bias"])
    optimizer = optimizer_class(groups, lr=0.1)
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()["param_groups"]
    names = [(name, group["decays"], group["adapts"]) for group in saved for name in group["param_names"]]
    assert sorted(names) == [
        ("0.bias", False, False),
        ("0.weight", True, True),
        ("1.bias", False, False),
        ("1.weight", False, True),
    ]


def test_torch_muon_takes_a_group_of_matrices():
    (group,) = parameter_groups(nn.Linear(4, 4, bias=False), weight_decay=0.1)
    optimizer = torch.optim.Muon([group], lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["weight"]
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.bad_input("an exclusion that fits no parameter")
@pytest.mark.parametrize("argument", ["exclude_from_decay", "exclude_from_adaptation"])
@pytest.mark.parametrize(
    ("entries", "fact"),
    [
        (
            ["bias", "embedd_ing"],
            r"'embedd_ing' fits no trainable parameter.*names are scale, bias, embedding\.weight, head\.weight, ",
        ),
        ([r"^frozen\."], r"fits no trainable parameter"),
        (["("], r"'\(' is not a regular expression \(.*backslash"),
        ([3], r"3 is not a regular expression"),
        ("bias", r"='bias': a list of entries, not one string. Write \['bias'\]"),
    ],
)
def test_an_entry_without_effect_or_sense_is_refused(argument, entries, fact):
    with pytest.raises(ValueError, match=f"^{argument}.*{fact}"):
        parameter_groups(Model(), weight_decay=0.1, **{argument: entries})


@pytest.mark.bad_input("a negative weight decay")
@pytest.mark.parametrize("weight_decay", [-0.1, float("nan"), "0.1"])
def test_a_weight_decay_out_of_range_is_refused(weight_decay):
    with pytest.raises(ValueError, match=r"^weight_decay="):
        parameter_groups(Model(), weight_decay=weight_decay)


@pytest.mark.parametrize(
    ("model", "count"), [(nn.ReLU(), 0), (nn.Linear(2, 2).requires_grad_(False), 2)], ids=["no parameters", "frozen"]
)
def test_a_model_without_trainable_parameters_is_refused(model, count):
    with pytest.raises(ValueError, match=rf"has no trainable parameters \({count} in all\).*requires_grad=True"):
        parameter_groups(model, weight_decay=0.1)


class Layered(nn.Module):
    """Embeddings, three layers in two stages, a last norm and a head, as vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1))
        self.patch = nn.Linear(2, 2)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(count))})
            for count in (2, 1)
        )
        self.norm, self.head = nn.LayerNorm(2), nn.Linear(2, 2)


def test_a_layer_decay_is_beits_and_multiplies_with_the_factors():
    """Exponents by hand: head 0, last layer 1, ..., first layer 3, embeddings 4."""
    found = lr_factors(Layered(), {"^head": 10.0}, layer_decay=0.5, layer_pattern=r"layers\.(\d+)\.blocks\.(\d+)\.")
    blocks = {"layers.0.blocks.0": 0.125, "layers.0.blocks.1": 0.25, "layers.1.blocks.0": 0.5}
    first, last = (
        dict.fromkeys(("token", "patch.weight", "patch.bias"), 0.0625),
        dict.fromkeys(("norm.weight", "norm.bias"), 1.0),
    )
    head = dict.fromkeys(("head.weight", "head.bias"), 10.0)
    assert found == first | {f"{name}.weight": factor for name, factor in blocks.items()} | last | head


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factors": {"stem": 2.0}}, "'stem' fits no trainable parameter"),
        ({"factors": {"^head": 2.0, "bias": 0.5}}, "head.bias is in"),
        ({"factors": {"^head": 0.0}}, "frozen with requires_grad=False"),
        ({"layer_decay": 1.0}, "between 0 and 1"),
        ({"layer_decay": 0.5, "layer_pattern": r"stages\.(\d+)"}, "is found in none of"),
        ({"layer_decay": 0.5, "layer_pattern": r"layers\.(\w+)\."}, None),
        ({"layer_decay": 0.5, "layer_pattern": r"(\w+)\.0"}, "regular expression whose groups are the numbers"),
        ({"layer_decay": 0.5, "layer_pattern": r"blocks\.(0)\."}, "layers.0.blocks.1.weight lies between two layers"),
    ],
)
def test_factors_without_effect_or_meaning_are_refused(arguments, message):
    if message is None:
        assert lr_factors(Layered(), **arguments)["layers.0.blocks.1.weight"] == 0.25
        return
    with pytest.raises(ValueError, match=message):
        lr_factors(Layered(), **arguments)


@pytest.mark.parametrize("make", [LARS, LAMB, MuonWithAdamW, torch.optim.SGD, torch.optim.AdamW])
def test_every_optimizer_steps_each_group_with_its_share_of_the_rate(make):
    """Two halves of a step: all parameters at factor f move as under the rate f times as large."""

    def moved(factor: float, rate: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)).double()
        factors = lr_factors(model, {"^1": factor})
        optimizer = make(parameter_groups(model, weight_decay=0.1, lr=0.3, lr_factors=factors), lr=0.3)
        keep_lr_ratios(optimizer)
        for _ in range(2):
            set_lr(optimizer, rate)
            for number, one in enumerate(model.parameters()):
                one.grad = torch.full_like(one, 0.5 + number)
            optimizer.step()
        return {name: one.detach() for name, one in model.named_parameters()}

    together, apart, faster = moved(0.5, 0.2), moved(1.0, 0.2), moved(1.0, 0.1)
    for name, value in together.items():
        torch.testing.assert_close(value, (faster if name.startswith("1.") else apart)[name], rtol=1e-12, atol=1e-15)


def test_rates_that_an_optimizer_gives_its_groups_keep_their_ratios():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[1].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with pytest.raises(ValueError, match=r"Groups 0 and 1 of SGD have the rates 0.01 and 0.1.*keep_lr_ratios"):
        set_lr(optimizer, 3.0)
    keep_lr_ratios(optimizer)
    for rate in (0.0, 7e-5, 3.0):
        set_lr(optimizer, rate)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.3, 3.0], rel=1e-15)
