"""MuonWithAdamW against torch's own Muon and AdamW, built by hand."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

from largebatch.optim import MuonWithAdamW, parameter_groups

pytestmark = pytest.mark.other_processor


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.wide = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(24)
        self.narrow = nn.Linear(24, 8, bias=False)
        self.multihead_mixer = nn.Linear(8, 8, bias=False)  # "head" is part of the name, yet it is hidden
        self.lm_head = nn.Linear(8, 11)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.conv(self.embedding(ids).transpose(1, 2)).transpose(1, 2)
        hidden = self.narrow(torch.tanh(self.norm(self.wide(hidden))))
        return self.lm_head(self.multihead_mixer(hidden))


MATRICES = {"wide.weight", "narrow.weight", "multihead_mixer.weight"}


def make_model(dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(0)
    return Model().to(dtype)


def backward(model: Model, step: int) -> None:
    ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(1, 1).flatten()).backward()


def lr_at(step: int) -> float:
    return 0.02 * min(1.0, (step + 1) / 4) * 0.5 * (1 + math.cos(math.pi * step / 12))


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_trajectory_is_bit_for_bit_that_of_torch_muon_and_torch_adamw():
    ours, theirs = make_model(), make_model()
    optimizer = MuonWithAdamW(
        parameter_groups(ours, weight_decay=0.1), lr=0.0, momentum=0.9, betas=(0.8, 0.95), eps=1.0
    )
    named = dict(theirs.named_parameters())
    not_decaying = {name for name in named if name.endswith("bias") or name.startswith("norm")}
    muon = torch.optim.Muon(
        [named[name] for name in named if name in MATRICES],
        weight_decay=0.1,
        momentum=0.9,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [named[name] for name in named if name not in MATRICES | not_decaying], "weight_decay": 0.1},
            {"params": [named[name] for name in named if name in not_decaying], "weight_decay": 0.0},
        ],
        betas=(0.8, 0.95),
        eps=1.0,  # so large that Muon, given it by mistake, would take other steps
    )
    for step in range(12):
        for group in [*optimizer.param_groups, *muon.param_groups, *adamw.param_groups]:
            group["lr"] = lr_at(step)
        backward(ours, step)
        backward(theirs, step)
        optimizer.step()
        muon.step()
        adamw.step()
    assert_same_weights(ours, theirs)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        truth = (muon if name in MATRICES else adamw).state[other]
        assert optimizer.state[one].keys() == truth.keys()
        assert all(torch.equal(optimizer.state[one][key], truth[key]) for key in truth)
        assert not torch.equal(one, dict(make_model().named_parameters())[name])


def test_hidden_matrices_are_muons_and_the_rest_is_adamws():
    optimizer = MuonWithAdamW(parameter_groups(make_model(), weight_decay=0.1), lr=0.01)
    muon = {name for group in optimizer.param_groups if group["muon"] for name in group["param_names"]}
    adamw = {name for group in optimizer.param_groups if not group["muon"] for name in group["param_names"]}
    assert muon == MATRICES
    assert adamw == {name for name, _ in make_model().named_parameters()} - MATRICES
    assert [(group["muon"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (True, 0.1),
        (False, 0.1),
        (False, 0.0),
    ]


@pytest.mark.parametrize(
    ("name", "is_adamws"),
    [
        ("transformer.wte.weight", True),
        ("transformer.wpe.weight", True),
        ("model.embed_tokens.weight", True),
        ("token_embedding.weight", True),
        ("head.weight", True),
        ("module.lm_head.weight", True),
        ("heads.head.weight", True),
        ("classifier.weight", True),
        ("fc.weight", True),
        ("module.fc.weight", True),
        ("blocks.0.multihead_attn.weight", False),
        ("transformer.h.0.mlp.c_fc.weight", False),
        ("blocks.3.fc.weight", False),
        ("blocks.0.attention_in.weight", False),
        ("overhead.weight", False),
    ],
)
def test_the_usual_names_of_embeddings_and_last_layers_are_known(name, is_adamws):
    hidden = ("hidden.weight", nn.Parameter(torch.ones(2, 2)))
    optimizer = MuonWithAdamW([hidden, (name, nn.Parameter(torch.ones(2, 2)))])
    assert any(name in group["param_names"] and not group["muon"] for group in optimizer.param_groups) == is_adamws


def test_own_patterns_replace_the_usual_ones():
    optimizer = MuonWithAdamW(make_model().named_parameters(), adamw_patterns=[r"^wide\.", r"lm_head"])
    muon = {name for group in optimizer.param_groups if group["muon"] for name in group["param_names"]}
    assert muon == MATRICES - {"wide.weight"} | {"embedding.weight"}


def test_writing_the_rate_of_a_group_acts_on_either_part():
    model = make_model()
    optimizer = MuonWithAdamW(parameter_groups(model, weight_decay=0.1), lr=0.5)
    optimizer.load_state_dict(optimizer.state_dict())  # the groups after a load count too
    for still in (True, False):
        before = copy.deepcopy(model)
        for group in optimizer.param_groups:
            group["lr"] = 0.0 if group["muon"] == still else 0.1
        backward(model, 0)
        optimizer.step()
        for (name, one), other in zip(model.named_parameters(), before.parameters(), strict=True):
            assert torch.equal(one, other) == ((name in MATRICES) == still), name


def test_the_step_of_a_matrix_has_the_root_mean_square_of_an_adamw_step():
    """0.2 lr: a semi-orthogonal A x B matrix has 1 / sqrt(max(A, B)), and torch's five iterations come within 30 %."""
    for shape in ((24, 8), (8, 24), (16, 16)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        MuonWithAdamW([("hidden", weight)], lr=0.01).step()
        assert weight.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.3), shape


def test_a_step_leaves_the_gradients_bit_identical():
    model = make_model()
    optimizer = MuonWithAdamW(parameter_groups(model, weight_decay=0.1), lr=0.01)
    for step in range(2):
        backward(model, step)
        before = [param.grad.clone() for param in model.parameters()]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_a_saved_optimizer_goes_on_bit_for_bit_in_torchs_own_structure():
    straight = make_model()
    first = MuonWithAdamW(parameter_groups(straight, weight_decay=0.1), lr=0.0)
    for step in range(8):
        if step == 4:
            resumed = copy.deepcopy(straight)
            second = MuonWithAdamW(parameter_groups(resumed, weight_decay=0.1), lr=0.0)
            state_dict = first.state_dict()
            assert state_dict.keys() == {"state", "param_groups"}
            assert sorted(state_dict["state"]) == list(range(len(list(straight.parameters()))))
            numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
            assert numbers == sorted(state_dict["state"])
            file = io.BytesIO()
            torch.save(state_dict, file)
            file.seek(0)
            second.load_state_dict(torch.load(file, weights_only=True))
        for model, optimizer in [(straight, first)] + ([(resumed, second)] if step >= 4 else []):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step)
            backward(model, step)
            optimizer.step()
    assert_same_weights(straight, resumed)


def test_a_copied_optimizer_steps_like_the_original():
    model = make_model()
    optimizer = MuonWithAdamW(parameter_groups(model, weight_decay=0.1), lr=0.01)
    backward(model, 0)
    optimizer.step()
    backward(model, 1)
    copied_model, copied = copy.deepcopy((model, optimizer))
    copied_model.zero_grad()
    backward(copied_model, 1)
    copied.step()
    optimizer.step()
    assert_same_weights(model, copied_model)


def test_a_group_added_later_is_trained():
    model = make_model()
    named = dict(model.named_parameters())
    late = {"params": [named.pop("narrow.weight")], "param_names": ["narrow.weight"]}
    optimizer = MuonWithAdamW(named.items(), lr=0.01)
    optimizer.add_param_group({**late, "muon": True})
    before = model.narrow.weight.detach().clone()
    backward(model, 0)
    optimizer.step()
    assert optimizer.state[model.narrow.weight].keys() == {"momentum_buffer"}
    assert not torch.equal(model.narrow.weight, before)


def test_the_closure_runs_once_and_its_loss_comes_back():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = MuonWithAdamW([("hidden", weight)])
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert calls == [True]


def matrix(name: str = "hidden.weight") -> tuple[str, nn.Parameter]:
    return (name, nn.Parameter(torch.ones(2, 2)))


@pytest.mark.parametrize(
    ("params", "options", "fact"),
    [
        ([matrix()], {"lr": -1.0}, r"^lr=-1\.0: "),
        ([matrix()], {"momentum": 1.0}, r"^momentum=1\.0: "),
        ([matrix()], {"betas": (0.9, 1.0)}, r"^betas=\(0\.9, 1\.0\): "),
        ([matrix()], {"weight_decay": -0.1}, r"^weight_decay=-0\.1: "),
        ([matrix()[1]], {}, r"1 parameters has no names.*named_parameters"),
        ([matrix("head.weight")], {}, r"^No parameter is left for Muon.*Use AdamW"),
        ([("hidden.bias", nn.Parameter(torch.ones(2)))], {}, r"^No parameter is left for Muon"),
        ([matrix()], {"adamw_patterns": ["embd"]}, r"'embd' fits no matrix.*the matrices are hidden\.weight\."),
        ([matrix()], {"adamw_patterns": ["("]}, r"not all are regular expressions"),
        ([matrix()], {"adamw_patterns": "head"}, r"a list of patterns, not one string"),
        ([{"params": [matrix()[1]], "muon": 1}], {}, r"^muon=1 in a parameter group"),
        ([{"params": [nn.Parameter(torch.ones(2, 2, 2))], "muon": True}], {}, r"shapes \[\[2, 2, 2\]\].*muon=False"),
        ([{"params": [matrix()], "lr": -1.0}], {}, r"^lr=-1\.0: "),
        ([{"params": [matrix()], "lr": 1.0}], {"lr": -1.0}, r"^lr=-1\.0: "),
    ],
)
def test_wrong_input_is_named_with_its_remedy(params, options, fact):
    with pytest.raises(ValueError, match=fact):
        MuonWithAdamW(params, **options)


@pytest.mark.parametrize(
    ("group", "fact"),
    [
        ({"params": [nn.Parameter(torch.ones(2, 2))]}, r"^muon=None in a parameter group"),
        ({"params": [nn.Parameter(torch.ones(3))], "param_names": ["b"], "muon": True}, r"^muon=True .* \[\[3\]\]"),
    ],
)
def test_a_wrong_group_is_refused_and_not_added(group, fact):
    optimizer = MuonWithAdamW([matrix()])
    with pytest.raises(ValueError, match=fact):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
