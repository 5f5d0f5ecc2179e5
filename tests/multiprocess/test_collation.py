"""Batches made by a function of the user's: sequences of unequal length, weighted by tokens, on any ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn
from torch.utils.data import Dataset

from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import prepare
from largebatch.run.train_quietly import train_quietly
from tests.multiprocess.pool import RankPool
from tests.unit.composing import compose_run

VOCABULARY, COUNT = 11, 37


class Ragged(Dataset[Any]):
    """Lists of 1 to 9 tokens with text beside them, as a tokenizer leaves them."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = [(3 * index + 5 * place) % VOCABULARY for place in range(1 + index * 7 % 9)]
        return {"text": f"sentence {index}", "ids": ids}


def padded(items: list[dict[str, Any]], filler: int = 0) -> dict[str, Tensor]:
    """To the longest of the batch; the next token is the target, and padding has none."""
    assert all(item["text"].startswith("sentence") for item in items)  # raw items, as a DataLoader passes them
    width = max(len(item["ids"]) for item in items)
    ids = torch.full((len(items), width), filler)
    labels = torch.full((len(items), width), -100)
    for row, item in enumerate(items):
        ids[row, : len(item["ids"])] = torch.tensor(item["ids"])
        labels[row, : len(item["ids"])] = (torch.tensor(item["ids"]) + 1) % VOCABULARY
    return {"input_ids": ids, "labels": labels}


def masked(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Labels of which a random half count, drawn for the whole batch as collators of masked models do."""
    batch = padded(items)
    batch["labels"][torch.rand(batch["labels"].shape) < 0.5] = -100
    return batch


def too_few(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {key: part[1:] for key, part in padded(items).items()}


def fails(items: list[dict[str, Any]]) -> None:
    raise KeyError("length")


class PerToken(nn.Module):
    """Scores of the next token from the token alone: padding changes nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Embedding(VOCABULARY, VOCABULARY)
        nn.init.zeros_(self.scores.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.scores(input_ids)


def config(collate_fn: str, *overrides: str, **arguments: Any) -> DictConfig:
    composed = compose_run(
        "data=synthetic", "loss=next_token", "loss.shift=false", "precision=fp64", "logger=none",
        "optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0", "scaling=none",
        "scaling.base_lr=0.5", "schedule=constant", "schedule.warmup=0ep", *overrides,
    )  # fmt: skip
    with open_dict(composed):
        composed.data.train = composed.data.validation = {"_target_": f"{__name__}.Ragged"}
        composed.data.collate_fn = {"_target_": f"{__name__}.{collate_fn}", **arguments}
        composed.model = {"_target_": f"{__name__}.PerToken"}
    return composed


def trained(folder: str, *overrides: str, collate_fn: str = "padded") -> Tensor:
    one = train_quietly(config(collate_fn, *overrides), Path(folder))
    return next(one.model.parameters()).detach()


def test_a_step_is_the_mean_over_all_tokens_of_samples_that_were_never_padded(
    ranks: Callable[[int], RankPool], tmp_path: Path
):
    scores = torch.zeros(VOCABULARY, VOCABULARY, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([token for sample in map(Ragged().__getitem__, range(COUNT)) for token in sample["ids"]])
    F.cross_entropy(scores[tokens], (tokens + 1) % VOCABULARY).backward()
    assert scores.grad is not None
    expected = -0.5 * scores.grad
    for world_size, workers in ((1, 0), (2, 0), (3, 2)):
        given = (f"batch.total={COUNT}", "length=1steps", "batch.max_micro=4", f"data.num_workers={workers}")
        folder = tmp_path / f"{world_size}-{workers}"
        for weights in ranks(world_size).run(trained, str(folder), *given):
            torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-15)


def test_draws_of_a_collator_are_those_of_its_micro_batch_on_any_ranks(
    ranks: Callable[[int], RankPool], tmp_path: Path
):
    given = ("batch.total=16", "length=80samples", "batch.micro=4")
    runs = [
        ranks(world_size).run(trained, str(tmp_path / str(world_size)), *given, f"data.num_workers={workers}",
                              collate_fn="masked")[0]
        for world_size, workers in ((1, 0), (3, 2))
    ]  # fmt: skip
    assert runs[0].abs().max() > 0.01
    torch.testing.assert_close(*runs, rtol=1e-12, atol=1e-15)
    assert not torch.equal(runs[0], ranks(1).run(trained, str(tmp_path / "all"), *given)[0])


@pytest.mark.parametrize(
    ("collate_fn", "overrides", "fact"),
    [
        ("fails", (), "data.collate_fn failed on samples"),
        ("too_few", (), "every part of a batch has one row per sample"),
        ("absent", (), "data.collate_fn._target_"),
        ("padded", ("batch.total=64tokens",), "data.collate_fn makes batches whose samples may have any number of"),
    ],
)
def test_what_is_wrong_with_a_collator_is_found_before_the_run(
    collate_fn: str, overrides: tuple[str, ...], fact: str, in_a_folder: None
):
    with pytest.raises(ConfigError, match=fact):
        prepare(config(collate_fn, "batch.total=8", "length=2steps", *overrides), {})


def test_a_collator_has_no_effect_on_a_set_in_memory(in_a_folder: None):
    given = compose_run("data=synthetic", f"data.collate_fn={{_target_: {__name__}.padded}}")
    with pytest.raises(ConfigError, match=r"data\.collate_fn: has no effect on a set in memory"):
        prepare(given, {})
