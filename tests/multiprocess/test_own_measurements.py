"""Sharpness and gap of plain modules, without our objects: alone and as ranks of somebody else's job."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, TensorDataset

from largebatch import measure_gap, measure_sharpness
from largebatch.diagnostics import LandscapeSettings, SharpnessSettings
from tests.restless import Restless, bits

GENERATOR = torch.Generator().manual_seed(3)
ROWS, CLASSES = torch.randn(26, 5, generator=GENERATOR), torch.randint(0, 3, (26,), generator=GENERATOR)
TRAIN, VALIDATION = slice(0, 15), slice(15, 26)
EXACT = SharpnessSettings(m=3, lanczos_iterations=40, lanczos_tolerance=1e-9, trace_samples=4)


class Dicts(Dataset[dict[str, Any]]):
    """As data sets of transformers: keywords of the model, and labels."""

    def __init__(self, rows: slice) -> None:
        self.rows, self.classes = ROWS[rows], CLASSES[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": self.rows[index], "labels": int(self.classes[index])}


def made() -> nn.Module:
    """Double precision, with dropout and a frozen bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    model[0].bias.requires_grad_(False)
    if dist.is_initialized():
        return DistributedDataParallel(model)
    return model


def data(kind: str, rows: slice) -> Any:
    """The same samples in each form; batches are those of this rank."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if kind == "dicts":
        return Dicts(rows)
    if kind == "tensors":
        return TensorDataset(ROWS[rows], CLASSES[rows])
    # Whole groups of 3 samples on each rank, so that the ascent steps are the same on any number of them.
    own = [part for number, part in enumerate(torch.arange(*rows.indices(26)).split(3)) if number % world_size == rank]
    places = torch.cat(own) if own else torch.empty(0, dtype=torch.int64)
    if kind == "loader":
        return DataLoader(TensorDataset(ROWS[places], CLASSES[places]), batch_size=2)
    return [(ROWS[places], CLASSES[places])]


def sharpness(kind: str) -> dict[str, float] | None:
    model = made()
    landscape = LandscapeSettings(box_iterations=3, line_points=3, plane_points=0)
    found = measure_sharpness(
        model, F.cross_entropy, data(kind, TRAIN), settings=EXACT, landscape=landscape, micro_batch_size=4
    )
    if found is None:
        return None
    assert found.box is not None
    return {
        "loss": found.loss,
        "lambda_max": found.lambda_max.value,
        "trace": found.trace.value,
        "box": found.box.value,
        "groups": found.m_sharpness.num_samples,
    }


def dense() -> tuple[float, float]:
    """Loss and largest eigenvalue, by the whole Hessian."""
    model = made().eval()
    parameters = {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}
    shapes = {name: one.shape for name, one in parameters.items()}

    def mean(flat: Tensor) -> Tensor:
        parts = flat.split([one.numel() for one in parameters.values()])
        named = {name: part.view(shapes[name]) for (name, part) in zip(parameters, parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, named, (ROWS[TRAIN].double(),)), CLASSES[TRAIN])

    flat = torch.cat([one.flatten() for one in parameters.values()])
    hessian = torch.autograd.functional.hessian(mean, flat)
    return float(mean(flat)), float(torch.linalg.eigvalsh(hessian)[-1])


@pytest.mark.parametrize(("world_size", "kind"), [(1, "dicts"), (2, "tensors"), (3, "loader"), (2, "batches")])
def test_sharpness_of_a_plain_module_equals_its_dense_hessian(ranks, world_size, kind):
    """15 samples, of which each rank computes some."""
    found, *others = ranks(world_size).run(sharpness, kind)
    loss, lambda_max = dense()
    assert (found["loss"], found["lambda_max"]) == pytest.approx((loss, lambda_max), rel=1e-8)
    assert found["groups"] == 5
    assert others == [None] * (world_size - 1)


def gap(kind: str) -> tuple[float, ...]:
    found = measure_gap(made(), nn.CrossEntropyLoss(), data(kind, TRAIN), data(kind, VALIDATION), num_samples=None)
    train, validation = found.train, found.validation
    assert train.accuracy is not None
    return (
        train.num_samples, validation.num_samples, validation.mean_loss, validation.loss_stderr, found.gap.loss,
        validation.accuracy or 0.0,
    )  # fmt: skip


@pytest.mark.parametrize(("world_size", "kind"), [(1, "batches"), (3, "loader")])
def test_the_gap_counts_every_sample_once_on_any_number_of_ranks(ranks, world_size, kind):
    model = made().eval()
    with torch.no_grad():
        outputs = model(ROWS.double())
    losses = F.cross_entropy(outputs, CLASSES, reduction="none").numpy()
    own, other = losses[TRAIN], losses[VALIDATION]
    right = float((outputs.argmax(1) == CLASSES)[VALIDATION].double().mean())
    expected = (15, 11, other.mean(), other.std(ddof=1) / np.sqrt(11), other.mean() - own.mean(), right)
    assert ranks(world_size).run(gap, kind) == [pytest.approx(expected, rel=1e-9)] * world_size


def test_as_many_samples_of_a_training_set_as_there_are_for_validation(ranks):
    """The same ones on 2 ranks as on 1."""
    (alone,), (first, second) = ranks(1).run(gap, "dicts"), ranks(2).run(gap, "tensors")
    assert alone[:2] == (11, 11)
    assert first == second == pytest.approx(alone, rel=1e-9)


def test_a_measurement_leaves_no_trace():
    model = Restless()
    loader = DataLoader(TensorDataset(torch.randn(6, 3), torch.randint(0, 2, (6,))), batch_size=2, shuffle=True)
    before = bits(model)
    measure_gap(model, nn.CrossEntropyLoss(), loader, loader)
    measure_sharpness(model, nn.CrossEntropyLoss(), loader, settings=SharpnessSettings(m=2))
    assert bits(model) == before


REFUSALS = [
    ({"train": [], "validation": []}, "0 batches"),
    ({"train": [(ROWS, CLASSES)], "validation": [(ROWS, CLASSES)], "num_samples": 3}, "no effect on batches"),
    ({"train": [(ROWS[0], CLASSES[0])], "validation": [(ROWS, CLASSES)]}, "single sample"),
    ({"loss": lambda outputs, targets: outputs.mean()}, "losses of single samples"),
]


@pytest.mark.parametrize(("change", "told"), REFUSALS, ids=[told for _, told in REFUSALS])
def test_what_cannot_be_measured_is_refused(change, told):
    given = {"loss": nn.CrossEntropyLoss(), "train": Dicts(TRAIN), "validation": Dicts(VALIDATION), **change}
    with pytest.raises(ValueError, match=told):
        measure_gap(nn.Linear(5, 3), given.pop("loss"), given.pop("train"), given.pop("validation"), **given)
