from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from largebatch.losses import NextToken
from largebatch.models import GPT, MLP, ConvNet, Linear, hugging_face, resnet18, resnet50


def num_parameters(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())


def small_gpt(**changes: object) -> GPT:
    sizes = {"vocab_size": 11, "context_length": 8, "num_layers": 2, "num_heads": 2, "width": 12} | changes
    torch.manual_seed(0)
    return GPT(**sizes).double()


@pytest.mark.parametrize(
    ("build", "published"),
    [
        (lambda: resnet18(1000), 11_689_512),  # torchvision's model page
        (lambda: resnet50(1000), 25_557_032),
        (lambda: resnet18(10, stem="cifar"), 11_173_962),  # kuangliu/pytorch-cifar
        (lambda: GPT(50257, 1024, num_layers=12, num_heads=12, width=768), 124_439_808),  # GPT-2 small
        (lambda: GPT(50257, 1024, num_layers=24, num_heads=16, width=1024), 354_823_168),  # GPT-2 medium
    ],
)
def test_parameter_count_is_the_published_one(build: Callable[[], nn.Module], published: int) -> None:
    assert num_parameters(build) == published


@pytest.mark.parametrize(
    ("build", "closed_form"),
    [
        (lambda: Linear(64, 10), 64 * 10 + 10),
        (lambda: Linear(64, 10, bias=False), 64 * 10),
        (lambda: MLP(64, 10, hidden=[32, 16]), (64 * 32 + 32) + (32 * 16 + 16) + (16 * 10 + 10)),
        (lambda: ConvNet(10, 1, width=8), 9 * (1 * 8 + 8 * 16 + 16 * 32) + 2 * (8 + 16 + 32) + 32 * 10 + 10),
        (
            lambda: GPT(50, 8, num_layers=2, num_heads=2, width=12, tie_embeddings=False),
            2 * 50 * 12 + 8 * 12 + 2 * (12 * 12 * 12 + 13 * 12) + 2 * 12,
        ),
    ],
)
def test_parameter_count_is_the_closed_form(build: Callable[[], nn.Module], closed_form: int) -> None:
    assert num_parameters(build) == closed_form


@pytest.mark.parametrize(
    ("model", "inputs", "shape"),
    [
        (Linear(64, 10), torch.zeros(3, 1, 8, 8), (3, 10)),
        (Linear(5, 1), torch.zeros(3, 5), (3, 1)),
        (MLP(64, 10, hidden=[7]), torch.zeros(3, 8, 8), (3, 10)),
        (ConvNet(10, 1, width=4), torch.zeros(3, 1, 8, 8), (3, 10)),
        (ConvNet(10, 3, width=4), torch.zeros(3, 3, 32, 32), (3, 10)),
        (resnet18(10, 1, stem="cifar"), torch.zeros(2, 1, 8, 8), (2, 10)),
        (small_gpt().float(), torch.zeros(3, 5, dtype=torch.int64), (3, 5, 11)),
    ],
)
def test_output_has_the_documented_shape(model: nn.Module, inputs: torch.Tensor, shape: tuple[int, ...]) -> None:
    assert model(inputs).shape == shape


def test_imagenet_stem_divides_the_resolution_by_32_and_cifar_stem_by_8() -> None:
    for stem, side in (("imagenet", 2), ("cifar", 8)):
        model = resnet18(10, stem=stem)
        assert model.blocks(model.stem(torch.zeros(1, 3, 64, 64))).shape == (1, 512, side, side)


def test_resnet50_strides_in_the_3x3_convolutions_alone() -> None:
    with torch.device("meta"):
        model = resnet50(10)
    strided = [
        (name, module.kernel_size)
        for name, module in model.blocks.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2)
    ]
    # One in each of three residual branches, one in each of their shortcuts (which are always 1x1).
    assert sorted(size for name, size in strided if "residual" in name) == [(3, 3)] * 3
    assert sorted(size for name, size in strided if "shortcut" in name) == [(1, 1)] * 3


@pytest.mark.parametrize(
    ("model", "num_blocks"),
    [
        (MLP(4, 2, hidden=[3, 3, 3]), 3),
        (ConvNet(2, 1, width=2), 3),
        (resnet18(2), 8),
        (small_gpt(), 2),
    ],
)
def test_blocks_are_named_by_the_default_pattern(model: nn.Module, num_blocks: int) -> None:
    matches = [name for name, _ in model.named_modules() if re.search(r"blocks\.\d+$", name)]
    assert matches == [f"blocks.{number}" for number in range(num_blocks)]


def test_resnet_starts_with_the_weights_of_goyal_et_al() -> None:
    torch.manual_seed(0)
    model = resnet18(100)
    # A standard deviation from k draws has relative error 1/sqrt(2k): five of those are allowed, here at most 3.7%.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            allowed = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=allowed)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(2 * 51200))
    assert model.head.bias.eq(0).all()
    gammas = {name: norm.weight for name, norm in model.named_modules() if isinstance(norm, nn.BatchNorm2d)}
    last = {name for name in gammas if name.endswith("residual.4")}
    assert len(last) == 8
    for name, gamma in gammas.items():
        assert gamma.eq(0.0 if name in last else 1.0).all(), name


def test_zero_last_gamma_makes_every_residual_block_its_shortcut() -> None:
    block = resnet18(10, stem="cifar").blocks[1]
    images = torch.rand(4, 64, 4, 4)
    torch.testing.assert_close(block(images), images, rtol=0, atol=0)


def test_last_gamma_starts_at_one_if_asked() -> None:
    model = resnet50(10, zero_init_last_gamma=False)
    assert all(block.last_norm.weight.eq(1).all() for block in model.blocks)


def test_zero_initialised_linear_model_starts_at_zero() -> None:
    assert Linear(5, 3, zero_init=True)(torch.randn(4, 5)).eq(0).all()
    assert Linear(5, 3)(torch.randn(4, 5)).ne(0).all()


def test_mlp_keeps_the_second_moment_of_its_activations() -> None:
    # He et al. 2015: with variance 2/fan_in, E[x^2] of the ReLU outputs does not change from layer to layer.
    torch.manual_seed(0)
    model = MLP(512, 10, hidden=[512] * 6)
    inputs = torch.randn(256, 512)
    ratio = (model.blocks(inputs).square().mean() / inputs.square().mean()).item()
    # Relative error per layer about sqrt(5/512) = 0.1, so 0.25 after six; torch's default init would give 3^-6 or so.
    assert 0.4 < ratio < 2.5


def test_gpt_starts_with_the_weights_of_gpt2() -> None:
    torch.manual_seed(0)
    num_layers = 3
    model = GPT(500, 64, num_layers=num_layers, num_heads=2, width=64, tie_embeddings=False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all(), name
        elif "norm" in name:
            assert parameter.eq(1).all(), name
        else:
            on_stream = name.endswith(("attention_out.weight", "feed_out.weight"))
            expected = 0.02 / math.sqrt(2 * num_layers) if on_stream else 0.02
            allowed = 5 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(expected, rel=allowed), name


def test_gpt_logits_never_see_later_tokens_and_always_see_earlier_ones() -> None:
    model = small_gpt()
    torch.manual_seed(1)
    tokens = torch.randint(11, (2, 8))
    before = model(tokens)
    for t in range(8):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % 11
        after = model(changed)
        # Float64 rounding alone could differ before t; what a leak would change is of the order of the logits, 0.1.
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-12)
        assert (after[:, t:] - before[:, t:]).abs().amax(dim=-1).min() > 1e-6


def test_gpt_sees_the_order_of_tokens() -> None:
    model = small_gpt()
    last_of = [model(torch.tensor([tokens]))[0, -1] for tokens in ([1, 2, 3], [2, 1, 3])]
    assert (last_of[0] - last_of[1]).abs().max() > 1e-6


def test_gpt_attention_equals_its_definition() -> None:
    block = small_gpt().blocks[0]
    stream = torch.randn(2, 5, 12, dtype=torch.float64)
    query, key, value = (
        part.reshape(2, 5, 2, 6).permute(0, 2, 1, 3) for part in block.attention_in(stream).chunk(3, dim=-1)
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(6)
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    mixed = (scores.softmax(dim=-1) @ value).permute(0, 2, 1, 3).reshape(2, 5, 12)
    torch.testing.assert_close(block.attend(stream), block.attention_out(mixed), rtol=1e-12, atol=1e-14)


def test_tied_embeddings_are_one_parameter_with_one_name() -> None:
    tied, untied = small_gpt(), small_gpt(tie_embeddings=False)
    assert [name for name in untied.state_dict() if name not in tied.state_dict()] == ["head.weight"]
    pointers = [parameter.data_ptr() for parameter in tied.state_dict().values()]
    assert len(set(pointers)) == len(pointers)


def test_tied_embedding_gradient_is_the_sum_of_both_uses() -> None:
    tied, untied = small_gpt(), small_gpt(tie_embeddings=False)
    untied.load_state_dict(tied.state_dict() | {"head.weight": tied.token_embedding.weight})
    tokens = torch.randint(11, (2, 8))
    for model in (tied, untied):
        model(tokens).square().sum().backward()
    both = untied.token_embedding.weight.grad + untied.head.weight.grad
    torch.testing.assert_close(tied.token_embedding.weight.grad, both, rtol=1e-12, atol=1e-14)


def test_gpt_dropout_acts_in_training_mode_alone() -> None:
    model, plain = small_gpt(dropout=0.5), small_gpt()
    tokens = torch.randint(11, (2, 8))
    assert not torch.equal(model(tokens), plain(tokens))
    torch.testing.assert_close(model.eval()(tokens), plain(tokens), rtol=0, atol=0)


def test_gpt_drops_the_embeddings_the_attention_weights_and_both_residual_branches() -> None:
    model = small_gpt()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1.0  # drops everything, so that what is left of each has a closed form
    block = model.blocks[0]
    nn.init.normal_(block.attention_out.bias)
    stream = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(block(stream), stream, rtol=0, atol=0)
    torch.testing.assert_close(block.attend(stream), block.attention_out.bias.expand(2, 5, 12), rtol=0, atol=0)
    assert model(torch.randint(11, (2, 8))).eq(0).all()  # the stream stays 0, and its norm is the bias, 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Linear(0, 10), "in_features=0"),
        (lambda: Linear(10, 2.0), "num_outputs=2.0"),
        (lambda: MLP(4, 2, hidden=[]), "Use Linear"),
        (lambda: MLP(4, 2, hidden=[3, -1]), r"hidden\[1\]=-1"),
        (lambda: MLP(4, 2, hidden=[3], dropout=1.0), "dropout=1.0"),
        (lambda: ConvNet(10, 1, width=True), "width=True"),
        (lambda: resnet18(10, stem="mnist"), "imagenet, cifar"),
        (lambda: resnet50(0), "num_classes=0"),
        (lambda: small_gpt(num_layers=0), "num_layers=0"),
        (lambda: small_gpt(dropout=-0.1), "dropout=-0.1"),
        (lambda: small_gpt(width=13), "Nearest that work: 12, 14"),
        (lambda: small_gpt(width=1), "Nearest that work: 2\\."),
        (lambda: Linear(64, 10)(torch.zeros(3, 65)), "65 features per sample, but was built for 64"),
        (lambda: MLP(64, 10, hidden=[3])(torch.zeros(64)), r"shape \[64\]"),
        (lambda: small_gpt()(torch.zeros(1, 9, dtype=torch.int64)), "9 tokens, context_length=8"),
        (lambda: hugging_face("AutoModel", "x", trust_remote_code=True), "runs code from the hub"),
    ],
)
def test_wrong_argument_is_refused_with_the_numbers(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def tiny_gpt2(folder: Path) -> Path:
    """The configuration of a GPT-2 with two small layers, as a local folder."""
    pytest.importorskip("transformers").GPT2Config(
        vocab_size=11, n_positions=8, n_embd=12, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    ).save_pretrained(folder)
    return folder


def test_a_hugging_face_model_is_fresh_or_pretrained_as_asked(tmp_path: Path) -> None:
    folder = tiny_gpt2(tmp_path / "config")
    torch.manual_seed(0)
    fresh = hugging_face("AutoModelForCausalLM", str(folder), pretrained=False)
    assert fresh.training
    tokens = torch.randint(0, 11, (2, 8))
    assert NextToken().loss_per_sample(fresh(tokens), tokens).shape == (2,)
    fresh.save_pretrained(tmp_path / "weights")
    loaded = hugging_face("AutoModelForCausalLM", str(tmp_path / "weights"))
    for (name, ours), theirs in zip(loaded.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    smaller = hugging_face("AutoModelForCausalLM", str(folder), pretrained=False, n_layer=1)
    assert len(smaller.transformer.h) == 1


def test_a_hugging_face_override_that_fits_no_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_layers: no such field in GPT2Config"):
        hugging_face("AutoModelForCausalLM", str(tiny_gpt2(tmp_path)), pretrained=False, n_layers=1)
    with pytest.raises(ValueError, match="starts with AutoModel, e"):
        hugging_face("GPT2LMHeadModel", str(tiny_gpt2(tmp_path)))


def test_missing_transformers_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape('pip install "largebatch[hf]"')):
        hugging_face("AutoModelForCausalLM", "gpt2")


def test_importing_the_models_does_not_import_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # an import of it would now raise ImportError
    importlib.reload(sys.modules["largebatch.models.hugging_face"])
