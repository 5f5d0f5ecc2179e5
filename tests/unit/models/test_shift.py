"""What labels of tokens mean is asked of data and model; nothing that a model wants to be trained on is lost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.losses import CrossEntropy, ModuleLoss, NextToken, require_no_dropped_loss
from largebatch.models import GPT
from largebatch.models.label_shift import require_decoder_inputs, with_shift

IDS = torch.randint(1, 17, (6, 9), generator=torch.Generator().manual_seed(0))
SMALL = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
T5 = {"vocab_size": 17, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}


def made(name: str, kind: str, **fields: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**fields)
    return getattr(transformers, f"AutoModelFor{kind}").from_config(config)


def gpt2() -> nn.Module:
    return made("GPT2", "CausalLM", vocab_size=17, n_positions=9, n_embd=16, n_layer=1, n_head=2)


def bert() -> nn.Module:
    return made("Bert", "MaskedLM", **SMALL)


def mixtral(**fields: Any) -> nn.Module:
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 1}
    return made("Mixtral", "CausalLM", **SMALL, **experts, max_position_embeddings=16, **fields)


def own(length: int) -> nn.Module:
    return GPT(17, length, num_layers=1, num_heads=2, width=16)


def adds_with_labels() -> nn.Module:
    return AddsWithLabels(17, 17)


def masked_prompt() -> Tensor:
    return IDS.masked_fill(torch.arange(9) < 4, -100)


def noise() -> Tensor:
    return torch.randint(1, 17, (6, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("build", "inputs", "labels", "shift"),
    [
        (gpt2, {"input_ids": IDS}, IDS, True),
        (gpt2, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}, masked_prompt(), True),
        (gpt2, IDS, IDS, True),
        (gpt2, {"input_ids": IDS[:, :-1]}, IDS[:, 1:], False),
        (bert, {"input_ids": noise()}, masked_prompt(), False),
        (mixtral, {"input_ids": IDS}, IDS, True),
        (partial(own, 8), IDS[:, :-1], IDS[:, 1:], False),
        (partial(own, 9), noise(), IDS, False),
        (nn.Identity, {"words": noise(), "type_ids": torch.zeros_like(IDS)}, torch.zeros_like(IDS), False),
    ],
    ids=["labels=ids", "prompt", "tensor", "moved", "masked lm", "experts", "own, moved", "own, other", "all alike"],
)
def test_labels_are_shifted_where_the_model_shifts_them_and_the_data_do_not(
    build: Callable[[], nn.Module], inputs: Any, labels: Tensor, shift: bool
) -> None:
    model = build().train()
    settled = with_shift(NextToken(label_smoothing=0.1), model, inputs, labels)
    assert settled == NextToken(label_smoothing=0.1, shift=shift)
    assert model.training


def test_a_shifted_loss_is_that_of_the_causal_model_itself() -> None:
    model, labels = gpt2().double().eval(), masked_prompt()
    labels[2] = -100
    outputs = model(input_ids=IDS, labels=labels)
    loss = with_shift(NextToken(), model, {"input_ids": IDS}, labels)
    ours = loss.loss_per_sample(outputs, labels).sum() / loss.units_per_sample(labels).sum()
    assert ours.item() == pytest.approx(outputs.loss.item(), rel=1e-6)  # transformers sums in float32
    assert loss.units_per_sample(labels).tolist() == [5, 5, 0, 5, 5, 5]
    hits = (outputs.logits[:, :-1].argmax(-1) == labels[:, 1:]).sum(dim=1)
    assert torch.equal(loss.correct_per_sample(outputs, labels), hits)


def test_an_explicit_shift_is_not_asked_about() -> None:
    for shift in (True, False):
        assert with_shift(NextToken(shift=shift), nn.Identity(), IDS, IDS) == NextToken(shift=shift)
    assert with_shift(CrossEntropy(), nn.Identity(), noise(), IDS) == CrossEntropy()


def test_a_loss_without_a_shift_does_not_train_a_copier_either() -> None:
    for loss in (CrossEntropy(), ModuleLoss(nn.CrossEntropyLoss())):
        with pytest.raises(ValueError, match=r"learn to copy its inputs.*loss=per_token"):
            with_shift(loss, nn.Identity(), {"tokens": IDS}, masked_prompt())


class AddsWithLabels(nn.Embedding):
    """Adds to its loss what no output shows without labels, as SwitchTransformers does."""

    config = None

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = super().forward(input_ids)
        loss = None
        if labels is not None:
            loss = logits.square().mean() + F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(logits=logits, loss=loss)


@pytest.mark.parametrize(
    ("build", "inputs", "labels", "message"),
    [
        (partial(own, 9), IDS, IDS, "GPT is not known to shift them.*loss.shift=true"),
        (bert, {"input_ids": IDS}, masked_prompt(), "BertForMaskedLM does not shift them"),
        (gpt2, {"input_ids": IDS}, noise(), "neither the inputs nor the inputs moved by one"),
        (
            partial(made, "T5", "Seq2SeqLM", **T5),
            {"input_ids": IDS},
            noise(),
            "add decoder_input_ids|Add decoder",
        ),
        (
            partial(mixtral, output_router_logits=True, router_aux_loss_coef=1.0),
            {"input_ids": IDS},
            IDS,
            "its loss has a term",
        ),
        (adds_with_labels, {"input_ids": IDS}, IDS, "its loss has a term"),
        (adds_with_labels, {"input_ids": IDS[:, :-1]}, IDS[:, 1:], "its loss has a term"),
    ],
    ids=["own copier", "masked lm copier", "unrelated", "decoder", "adds a loss", "adds with labels", "adds, moved"],
)
def test_what_would_train_a_copier_or_cannot_be_told_is_refused(
    build: Callable[[], nn.Module], inputs: Any, labels: Tensor, message: str
) -> None:
    ask = require_decoder_inputs if "decoder" in message else partial(with_shift, targets=labels)
    with pytest.raises(ValueError, match=message):
        ask(NextToken(), build(), inputs)


def test_a_decoder_with_inputs_of_its_own_has_labels_where_they_are_predicted() -> None:
    model = made("T5", "Seq2SeqLM", **T5, decoder_start_token_id=0)
    inputs = {"input_ids": noise(), "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=IDS)}
    assert with_shift(NextToken(), model, inputs, IDS) == NextToken(shift=False)


class Gated(nn.Linear):
    """Keeps a penalty for whoever asks, as gates of several mixtures of experts do."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        self.l_aux, self.last_logits, self.temperature = outputs.square().mean(), outputs, outputs.mean().exp()
        return outputs


class Keeps(nn.Linear):
    """Keeps something of its hidden values, and may compute its outputs from it."""

    def __init__(self, name: str, value: Any, *, is_used: bool = False) -> None:
        super().__init__(3, 2)
        self.name, self.value, self.is_used = name, value, is_used

    def forward(self, inputs: Tensor) -> Tensor:
        penalty = self.weight.square().sum()
        setattr(self, self.name, self.value(penalty))
        outputs = super().forward(inputs)
        return outputs + penalty if self.is_used else outputs


class TwoHeads(nn.Linear):
    """Returns what it is told to."""

    def __init__(self, name: str) -> None:
        super().__init__(3, 2)
        self.name = name

    def forward(self, inputs: Tensor) -> Any:
        outputs = super().forward(inputs)
        return SimpleNamespace(
            logits=outputs, hidden=outputs, **{self.name: 2 * outputs if "s" in self.name else outputs.sum()}
        )


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (mixtral(output_router_logits=True), IDS, "MixtralForCausalLM also returns aux_loss.*output_router_logits"),
        (Gated(3, 2), torch.ones(4, 3), "Gated also keeps l_aux"),
        (Keeps("kl", lambda one: one), torch.ones(4, 3), "Keeps also keeps kl"),
        (Keeps("_aux_losses", lambda one: [one]), torch.ones(4, 3), "Keeps also keeps _aux_losses"),
        (Keeps("losses", lambda one: {"balance": one}), torch.ones(4, 3), "Keeps also keeps losses"),
        (Keeps("penalties", lambda one: one.expand(4)), torch.ones(4, 3), "Keeps also keeps penalties"),
        (TwoHeads("aux_logits"), torch.ones(4, 3), "TwoHeads also returns aux_logits"),
        (TwoHeads("balance"), torch.ones(4, 3), "TwoHeads also returns balance"),
    ],
)
def test_a_loss_of_the_model_that_training_would_drop_is_refused(
    model: nn.Module, inputs: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        require_no_dropped_loss(model, model(inputs))


def test_what_is_trained_through_the_outputs_is_not_left_out() -> None:
    model = Keeps("l_aux", lambda one: one, is_used=True)
    require_no_dropped_loss(model, model(torch.ones(4, 3)))
    losses = model(torch.ones(4, 3)).sum(dim=1)
    model.account_of_loss = losses.mean()
    require_no_dropped_loss(model, losses, are_losses=True)
    with pytest.raises(ValueError, match="account_of_loss"):
        require_no_dropped_loss(model, losses)


def test_outputs_without_a_loss_of_their_own_pass() -> None:
    for model, inputs in ((gpt2(), IDS), (mixtral(), IDS), (bert(), IDS), (nn.Linear(3, 2), torch.ones(4, 3))):
        require_no_dropped_loss(model, model(inputs))
