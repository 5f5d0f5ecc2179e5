"""Documents packed into windows: labels, positions and attention stop at their ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.data import TokenWindows, token_stream
from largebatch.losses import NextToken
from largebatch.models import GPT, checkpoint_activations
from largebatch.run.config.reading import ConfigError
from largebatch.run.parts import has_fixed_units
from largebatch.run.prepare import prepare
from tests.unit.composing import compose_run

END, VOCABULARY, CONTEXT = 0, 13, 8
DOCUMENTS = ([5, 6, 7], [], [8, 9, 1, 2, 3], [11], [12, 3, 4, 5])
PACKED = np.array([token for document in DOCUMENTS for token in (*document, END)])  # 18 tokens: two windows


def windows(**options: bool) -> TokenWindows:
    return TokenWindows(PACKED, context_length=CONTEXT, vocab_size=VOCABULARY, end_of_document=END, **options)


def pieces(inputs: Tensor) -> list[tuple[int, int, int]]:
    """(window, begin, end) of each document's part, found by going through the tokens."""
    found = []
    for row, tokens in enumerate(inputs.tolist()):
        begin = 0
        for place, token in enumerate(tokens):
            if token == END or place == CONTEXT - 1:
                found.append((row, begin, place + 1))
                begin = place + 1
    return found


def test_only_the_first_token_of_each_document_is_no_target():
    inputs, targets = windows(masks_starts=True).fetch(np.arange(2))
    plain, following = TokenWindows(PACKED, context_length=CONTEXT, vocab_size=VOCABULARY).fetch(np.arange(2))
    assert torch.equal(inputs, plain)
    # Documents begin at 0, 4, 5, 11 and 13 of the stream: all but the first are the targets of the token before.
    masked = [position + 1 for position, target in enumerate(targets.flatten().tolist()) if target == -100]
    assert masked == [4, 5, 11, 13]
    assert torch.equal(torch.where(targets == -100, following, targets), following)
    assert NextToken().units_per_sample(targets).tolist() == [6, 6]


def test_positions_begin_anew_with_each_document_and_window():
    inputs, _ = windows(separates=True).fetch(np.array([1, 0]))
    assert inputs["input_ids"].tolist() == [[2, 3, END, 11, END, 12, 3, 4], [5, 6, 7, END, END, 8, 9, 1]]
    expected = torch.zeros(2, CONTEXT, dtype=torch.int64)
    for row, begin, end in pieces(inputs["input_ids"]):
        expected[row, begin:end] = torch.arange(end - begin)
    assert torch.equal(inputs["position_ids"], expected)
    one, _ = windows(separates=True)[1]
    assert torch.equal(one["position_ids"], inputs["position_ids"][0])


def hugging_face(kind: str, attention: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    more = {"intermediate_size": 16, "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": CONTEXT}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more, attn_implementation=attention)
    config.use_cache = False  # with a cache, transformers takes packed documents for one
    return getattr(transformers, f"{kind}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel")(config)


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind in ("GPT", "GPT, checkpointed"):
        model = GPT(VOCABULARY, CONTEXT, num_layers=2, num_heads=3, width=12)
        if kind == "GPT, checkpointed":
            checkpoint_activations(model)
        return model
    return hugging_face(*kind.split(", "))


@pytest.mark.parametrize("kind", ["GPT", "GPT, checkpointed", "Llama, sdpa", "Llama, eager", "GPT2, sdpa"])
def test_a_packed_document_is_scored_as_if_it_were_alone(kind: str):
    model = model_of(kind).double().eval()
    # Eager attention of transformers takes its softmax in float32, even in float64 models; each CPU rounds its own way.
    exactness = {"rtol": 1e-4, "atol": 1e-6} if kind.endswith("eager") else {"rtol": 1e-10, "atol": 1e-12}
    inputs, _ = windows(separates=True).fetch(np.arange(2))
    outputs: Any = model(**inputs)
    packed = outputs if isinstance(outputs, Tensor) else outputs.logits
    parts = pieces(inputs["input_ids"])
    assert len(parts) == 6
    for row, begin, end in parts:
        alone: Any = model(inputs["input_ids"][row : row + 1, begin:end])
        scores = alone if isinstance(alone, Tensor) else alone.logits
        torch.testing.assert_close(packed[row, begin:end], scores[0], **exactness)
    crossing: Any = model(inputs["input_ids"])
    crossed = crossing if isinstance(crossing, Tensor) else crossing.logits
    assert (packed - crossed).abs().max() > 1e-4


def test_gradients_of_packed_documents_are_those_of_single_ones():
    model = model_of("GPT").double()
    inputs, targets = windows(separates=True, masks_starts=True).fetch(np.arange(2))
    NextToken().loss_per_sample(model(**inputs), targets).sum().backward()
    packed = [one.grad.clone() for one in model.parameters() if one.grad is not None]
    model.zero_grad()
    for row, begin, end in pieces(inputs["input_ids"]):
        scores = model(inputs["input_ids"][row : row + 1, begin:end])
        F.cross_entropy(scores[0], targets[row, begin:end], ignore_index=-100, reduction="sum").backward()
    for one, other in zip(packed, (one.grad for one in model.parameters()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"masks_starts": True}, "documents are told apart by the token that ends each one"),
        ({"separates": True}, "documents are told apart by the token that ends each"),
        ({"end_of_document": 3}, "end_of_document=3 has no effect without masks_starts"),
        ({"end_of_document": 256, "separates": True}, "end_of_document=256: is none of the 256 tokens, 0 to 255"),
    ],
)
def test_options_of_documents_without_effect_are_refused(tmp_path: Path, options: dict[str, Any], fact: str):
    (tmp_path / "text.txt").write_text("some text of some length", encoding="utf-8")
    with pytest.raises(ValueError, match=fact):
        token_stream(tmp_path / "text.txt", "train", context_length=4, tokenizer="bytes", **options)


class OneText(GPT):
    """Takes the positions, and attends to everything before a token."""

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        return super().forward(input_ids)


RUN = (
    "data=tokens", "data.path=packed.npy", f"data.vocab_size={VOCABULARY}", f"data.context_length={CONTEXT}",
    f"data.train.end_of_document={END}", "data.train.separates=true",
    "batch.total=8", "length=4steps",
)  # fmt: skip
SMALL = ("model.num_layers=1", "model.num_heads=1", "model.width=8")


def test_a_model_that_does_not_keep_documents_apart_is_refused(in_a_folder: None):
    np.save("packed.npy", np.tile(PACKED, 60))
    prepared = prepare(compose_run(*RUN, *SMALL, "data.train.masks_starts=true"), {})
    assert not has_fixed_units(prepared)  # tokens that count differ between samples
    with pytest.raises(ConfigError, match="with the document before it: OneText does not keep them apart"):
        prepare(compose_run(*RUN, *SMALL, f"model._target_={__name__}.OneText"), {})


def test_the_cache_of_transformers_is_named(in_a_folder: None, tmp_path: Path):
    np.save("packed.npy", np.tile(PACKED, 60))
    hugging_face("GPT2", "sdpa").config.save_pretrained(tmp_path / "gpt2")
    composed = compose_run(*RUN, "model=hugging_face", f"model.name={tmp_path / 'gpt2'}", "model.pretrained=false",
                           "model.auto_class=AutoModelForCausalLM", "+model.use_cache=true")  # fmt: skip
    with pytest.raises(ConfigError, match=r"keeps a cache: \+model\.use_cache=false"):
        prepare(composed, {})
