"""The callback in a real Trainer of transformers: what it logs is computed by hand, and it changes nothing."""

from __future__ import annotations

import copy
import math
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from largebatch.batch import Schedule
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.optim import LAMB, ScheduleLR, follow_batch
from tests.noise_by_hand import noise_by_hand

SAMPLES = 22  # the last batch, and the last step, of an epoch are smaller
GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(SAMPLES + 9, 5, generator=GENERATOR)
CLASSES = torch.randint(0, 3, (SAMPLES + 9,), generator=GENERATOR)

RAMP_UP_AND_DOWN = Schedule(total_samples=40, warmup_samples=10, decay="linear")


class Rows(Dataset[dict[str, Any]]):
    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end

    def __len__(self) -> int:
        return self.end - self.first

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):
            raise IndexError(index)
        return {"rows": ROWS[self.first + index], "labels": int(CLASSES[self.first + index])}


class Means(nn.Module):
    """Its loss is the mean of a micro-batch: the Trainer divides by the number of micro-batches."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(5, 6), nn.Dropout(dropout), nn.Linear(6, 3)

    def forward(self, rows: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.drop(torch.tanh(self.body(rows))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Divided(Means):
    """As models of transformers: sums over `num_items_in_batch`."""

    def forward(self, rows: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        logits = self.head(self.drop(torch.tanh(self.body(rows))))
        items = kwargs.get("num_items_in_batch")
        total = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return {"loss": total / (len(labels) if items is None else items), "logits": logits}


def recorded(trainer: Any, steps: list[Any]) -> None:
    """Note the weights and micro-batches of every step."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.append((copy.deepcopy(trainer.model).eval(), []))

    def note(model: nn.Module, _: Any, inputs: dict[str, Tensor]) -> None:
        if model.training:
            steps[-1][1].append((inputs["rows"], inputs["labels"]))

    trainer.add_callback(Recorder())
    trainer.model.register_forward_pre_hook(note, with_kwargs=True)


def fitted(
    folder: str, kind: str, *, is_watched: bool, accumulation: int, dropout: float = 0.0, steps: int = 3
) -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    from largebatch.integrations.hugging_face import LargeBatchCallback

    torch.manual_seed(0)
    model = {"means": Means, "divided": Divided}[kind](dropout)
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=4, gradient_accumulation_steps=accumulation, max_steps=steps,
        logging_steps=1, eval_strategy="steps", eval_steps=2, use_cpu=True, report_to=[], save_strategy="no",
        max_grad_norm=0.05, disable_tqdm=True, seed=7,
    )  # fmt: skip
    optimizer = LAMB(model.parameters(), lr=0.02)
    trainer = Trainer(
        model, arguments, train_dataset=Rows(0, SAMPLES), eval_dataset=Rows(SAMPLES, SAMPLES + 9),
        optimizers=(optimizer, None),
    )  # fmt: skip
    noted: list[Any] = []
    recorded(trainer, noted)
    if is_watched:
        trainer.add_callback(LargeBatchCallback(trainer))
    trainer.train()
    weights = torch.cat([one.detach().flatten() for one in model.parameters()])
    found = {"history": trainer.state.log_history, "weights": weights.tolist(), "expected": []}
    for before, micro_batches in noted:
        gathered: list[Any] = [micro_batches]
        if dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, micro_batches)
        everything = [micro_batch for of_rank in gathered for micro_batch in of_rank]
        found["expected"].append(expected_row(before, everything, "sum" if kind == "divided" else "mean"))
    return found


def expected_row(model: nn.Module, micro_batches: list[Any], reduction: str) -> tuple[float, float]:
    """tr(Sigma) and |G|^2, with the correction for samples that are drawn without replacement."""

    def loss_of(model: nn.Module, micro_batch: Any) -> Tensor:
        return model(*micro_batch)["loss"]

    sizes = [len(labels) for _, labels in micro_batches]
    _, trace, grad_sq_norm = noise_by_hand(model, micro_batches, loss_of, sizes, reduction)
    return trace * (SAMPLES - 1) / SAMPLES, grad_sq_norm + trace / SAMPLES


def logged(history: list[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in history if key in row]


CASES = [(1, "means", 2), (2, "divided", 1), (2, "means", 2)]


@pytest.mark.parametrize(("world_size", "kind", "accumulation"), CASES, ids=str)
def test_the_logged_noise_is_computed_by_hand(ranks, tmp_path: Path, world_size, kind, accumulation):
    """What is logged are running means; gradients are clipped, and the last step of an epoch is smaller."""
    for result in ranks(world_size).run(fitted, str(tmp_path), kind, is_watched=True, accumulation=accumulation):
        means = np.cumsum(result["expected"], axis=0) / np.arange(1, len(result["expected"]) + 1)[:, None]
        for column, key in enumerate(("noise_scale/trace", "noise_scale/grad_sq_norm")):
            np.testing.assert_allclose(logged(result["history"], key), means[:, column], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 2), (2, 1)])
def test_the_training_is_the_same_to_the_last_bit(ranks, tmp_path: Path, world_size, accumulation):
    """With dropout, and evaluations of the gap in between."""
    options = {"accumulation": accumulation, "dropout": 0.3}
    watched, plain = (
        ranks(world_size).run(fitted, str(tmp_path), "means", is_watched=one, **options) for one in (True, False)
    )
    assert [one["weights"] for one in watched] == [one["weights"] for one in plain]
    for with_it, without in zip(watched, plain, strict=True):
        assert logged(with_it["history"], "loss") == logged(without["history"], "loss")
        assert logged(with_it["history"], "eval_loss") == logged(without["history"], "eval_loss")
    history = watched[0]["history"]
    assert len(logged(history, "trust_ratio/head.weight")) == 3
    assert len(logged(history, "update_to_weight/median")) == 3


def test_the_gap_is_that_of_samples_evaluated_once(ranks, tmp_path: Path):
    """9 validation samples and as many of the training set, on 2 ranks; the Trainer's own batches repeat some."""
    (result, _) = ranks(2).run(fitted, str(tmp_path), "means", is_watched=True, accumulation=1, steps=2)
    model = Means(0.0)
    nn.utils.vector_to_parameters(torch.tensor(result["weights"]), model.parameters())
    ids = FixedSubset.random(Rows(0, SAMPLES), 9, seed=7, micro_batch_size=4).ids
    with torch.no_grad():
        own, other = (float(model(ROWS[one], CLASSES[one])["loss"]) for one in (ids, slice(SAMPLES, SAMPLES + 9)))
    assert logged(result["history"], "gap/loss") == [pytest.approx(other - own, rel=1e-5)]
    assert not math.isnan(logged(result["history"], "gap/loss_stderr")[0])


def test_a_callback_needs_the_trainer_that_logs():
    from largebatch.integrations.hugging_face import LargeBatchCallback

    with pytest.raises(ValueError, match=r"trainer.add_callback\(LargeBatchCallback\(trainer\)\)"):
        LargeBatchCallback(nn.Linear(1, 1))


def scheduled(folder: str) -> list[tuple[float, float]]:
    """Rate and momentum of each step under a schedule over samples; the half-life is that of 2 samples per step."""
    from transformers import Trainer, TrainingArguments

    model, found = Means(0.0), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    stepped = itemgetter("lr", "momentum")  # of the group of then: accelerate makes new ones
    optimizer.register_step_pre_hook(lambda *_: found.append(stepped(optimizer.param_groups[0])))
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=5, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    size = 4 * (dist.get_world_size() if dist.is_initialized() else 1)
    scaled = follow_batch(optimizer, size, base_batch_size=2, rule="linear_half_life")
    scheduler = ScheduleLR(optimizer, RAMP_UP_AND_DOWN, global_batch_size=size, scaled=scaled)
    Trainer(model, arguments, train_dataset=Rows(0, SAMPLES), optimizers=(optimizer, scheduler)).train()
    return found


def test_the_trainer_follows_a_schedule_and_the_batch_on_any_number_of_ranks(ranks: Any, tmp_path: Path):
    for world_size in (1, 2):
        momentum = 0.9 ** (2 * world_size)
        peak = 0.2 * 2 * world_size * (1 - momentum) / (1 - 0.9)
        expected = [(peak * RAMP_UP_AND_DOWN(4 * world_size * step), momentum) for step in range(5)]
        for found in ranks(world_size).run(scheduled, str(tmp_path)):
            assert np.array(found) == pytest.approx(np.array(expected), rel=1e-12)
