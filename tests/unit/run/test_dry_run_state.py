"""What a forward pass keeps for the next one is found before the run, and told, refused, or given a rule."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import Dataset

from largebatch.losses import CrossEntropy
from largebatch.run.checks.dry_run.samples import TriedBatch
from largebatch.run.checks.dry_run.state import KeptState, find_state
from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import Prepared, prepare
from tests.unit.composing import compose_run

HERE = "tests.unit.run.test_dry_run_state"
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TWO_RANKS = MEETING | {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
SPECTRAL = ("parametrizations.weight.0._u", "parametrizations.weight.0._v")


class Base(nn.Linear):
    """A classifier with something added to its forward pass."""

    def __init__(self, in_features: int = 64, num_outputs: int = 10) -> None:
        super().__init__(in_features, num_outputs)
        self.add()

    def add(self) -> None: ...

    def moves(self, inputs: Tensor) -> Tensor:
        return inputs

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(self.moves(inputs.flatten(1)))


class Plain(Base):
    """Batch norm and dropout have rules of their own; an input scale is no state."""

    def add(self) -> None:
        self.norm, self.drop = nn.BatchNorm1d(self.in_features), nn.Dropout(0.5)
        self.register_buffer("scale", torch.tensor(2.0))

    def moves(self, inputs: Tensor) -> Tensor:
        return self.drop(self.norm(inputs)) * self.scale


class Passes(Base):
    """A counter of forward passes."""

    def add(self) -> None:
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def moves(self, inputs: Tensor) -> Tensor:
        self.passes = self.passes + 1  # a new tensor in place of the old one
        return inputs


class Samples(Passes):
    """A counter of samples."""

    def moves(self, inputs: Tensor) -> Tensor:
        self.passes += len(inputs)
        return inputs


class Codebook(Base):
    """A moving average of what was seen, as a vector quantiser has; off in evaluation mode."""

    def add(self) -> None:
        self.register_buffer("code", torch.zeros(self.in_features))

    def moves(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.code.lerp_(inputs.mean(0).detach(), 0.1)
        return inputs - self.code


class Momentum(Base):
    """Averages its weights into a second encoder, in either of the ways that are common."""

    def add(self) -> None:
        self.slow = nn.Linear(self.in_features, self.out_features).requires_grad_(False)
        self.slow.load_state_dict(self.state_dict(), strict=False)  # as usual: at first an average moves nothing

    def moves(self, inputs: Tensor) -> Tensor:
        self.slow.weight.data = 0.9 * self.slow.weight.data + 0.1 * self.weight.data
        with torch.no_grad():
            self.slow.bias.lerp_(self.bias, 0.1)
        return inputs


class Centres(Base):
    """Centres that follow the samples, kept as a parameter without gradient."""

    def add(self) -> None:
        self.centre = nn.Parameter(torch.zeros(self.in_features), requires_grad=False)

    def moves(self, inputs: Tensor) -> Tensor:
        self.centre.data.lerp_(inputs.mean(0), 0.1)
        return inputs - self.centre


class Bounds(Base):
    """Rows of an embedding that become too long one day are scaled down where they are looked up."""

    def add(self) -> None:
        self.rows = nn.Embedding(2, self.in_features, max_norm=1e3)

    def moves(self, inputs: Tensor) -> Tensor:
        return inputs + self.rows((inputs[:, 0] > 0).long())


class Masks(Base):
    """A buffer that holds the latest draw."""

    def add(self) -> None:
        self.register_buffer("mask", torch.zeros(self.in_features))

    def moves(self, inputs: Tensor) -> Tensor:
        self.mask.copy_(torch.rand(self.in_features))
        return inputs * self.mask


class OwnGenerator(Base):
    """Noise that no seed of the run reaches."""

    def add(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def moves(self, inputs: Tensor) -> Tensor:
        return inputs + torch.randn(inputs.shape, generator=self.generator)


class Anneals(Base):
    """A number of Python that grows with every pass."""

    temperature = 1.0

    def moves(self, inputs: Tensor) -> Tensor:
        self.temperature *= 1.1
        return inputs * self.temperature


class LayerDrop(Base):
    """Leaves a block out by the draw of a generator."""

    def add(self) -> None:
        self.block = nn.Linear(self.in_features, self.in_features)

    def draw(self) -> float:
        return float(torch.rand(()))

    def moves(self, inputs: Tensor) -> Tensor:
        return self.block(inputs) if self.draw() > 0.5 else inputs


class LayerDropOfPython(LayerDrop):
    def draw(self) -> float:
        return random.random()


class LayerDropOfNumpy(LayerDrop):
    def draw(self) -> float:
        return np.random.rand()  # noqa: NPY002


class Experts(LayerDrop):
    """An expert for samples that never come in a dry run."""

    def moves(self, inputs: Tensor) -> Tensor:
        rare = inputs[:, 0] > 100
        return inputs.masked_scatter(rare[:, None], self.block(inputs[rare])) if rare.any() else inputs


class BySize(LayerDrop):
    """Leaves a block out of small micro-batches."""

    def moves(self, inputs: Tensor) -> Tensor:
        return self.block(inputs) if len(inputs) > 5 else inputs


KINDS: dict[type[Base], KeptState] = {
    Plain: KeptState(),
    Passes: KeptState(by_step=("passes",)),
    Samples: KeptState(by_samples=("passes",)),
    Codebook: KeptState(by_samples=("code",)),
    Momentum: KeptState(by_step=("slow.weight", "slow.bias")),
    Centres: KeptState(by_samples=("centre",)),
    Bounds: KeptState(by_samples=("rows.weight",)),
    Masks: KeptState(by_samples=("mask",)),
    OwnGenerator: KeptState(is_hidden=True),
    Anneals: KeptState(is_hidden=True),
    LayerDrop: KeptState(choices=("float",)),
    LayerDropOfPython: KeptState(choices=("random",)),
    LayerDropOfNumpy: KeptState(choices=("numpy.random",)),
    Experts: KeptState(choices=("bool",)),
}


def state_of(model: nn.Module) -> KeptState:
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(6, 64, generator=generator), torch.arange(6)
    loaded: Any = None
    return find_state(model, CrossEntropy(), TriedBatch(inputs, targets, 6, 6, loaded), precision="fp32", seed=0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_of_state_is_found_and_left_as_it_was(kind):
    torch.manual_seed(0)
    model = kind()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: value for name, value in vars(model).items() if isinstance(value, (int, float))}
    assert state_of(model) == KINDS[kind]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: vars(model)[name] for name in attributes} == attributes
    assert all(part.training for part in model.modules())


def test_power_iterations_move_alike_and_instance_norm_has_the_rule_of_batch_norm():
    assert state_of(spectral_norm(nn.Linear(64, 10))).by_step == SPECTRAL
    norm = nn.Sequential(nn.Unflatten(1, (4, 16)), nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten())
    assert state_of(nn.Sequential(norm, nn.Linear(64, 10))) == KeptState()
    assert state_of(nn.Sequential(Codebook().eval(), nn.Linear(10, 10))) == KeptState(), "frozen by its user"


def prepared(kind: type[Base] | None, *overrides: str, environ: dict[str, str] | None = None) -> Prepared:
    model = ("model=linear",) if kind is None else ("model=linear", f"model._target_={HERE}.{kind.__name__}")
    run = compose_run("data=synthetic", *model, "logger=none", "length=4ep", "schedule.warmup=1ep", *overrides)
    return prepare(run, environ or {})


def refused(kind: type[Base] | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        prepared(kind, *overrides, environ=TWO_RANKS)
    return caught.value.errors


@pytest.mark.parametrize(
    ("kind", "fact"),
    [
        (Codebook, "2 ranks: 1 tensor (code) of the model change with the samples of each pass"),
        (OwnGenerator, "2 ranks: the model or the loss gave other values the second time, for the same samples"),
    ],
)
def test_what_ranks_would_not_share_is_refused_on_several_and_told_on_one(kind, fact):
    (error,) = refused(kind)
    assert error.startswith(fact)
    text = fact.removeprefix("2 ranks: ")
    accumulating = prepared(kind, "batch.total=32", "batch.micro=8").notes
    assert [note for note in accumulating if note.startswith(f"state: {text}")]
    whole = prepared(kind, "batch.total=32").notes
    assert bool(whole) == (kind is OwnGenerator), "one pass per step of one process is plain torch"


def test_what_moves_alike_has_a_rule_that_the_plan_tells():
    for environ in ({}, TWO_RANKS):
        run = prepared(Passes, "batch.total=32", "batch.micro=8", environ=environ)
        assert run.state.by_step == ("passes",)
        (note,) = run.notes
        assert note.startswith(
            "state: 1 tensor (passes) of the model change identically in every pass, so they change once per step"
        )
    assert prepared(Passes, "batch.total=32").notes == ()


def test_an_expert_without_samples_and_a_dropped_layer_are_no_unused_parameters():
    for kind in (Experts, LayerDrop, LayerDropOfNumpy):
        assert prepared(kind).notes == ()
        (note,) = prepared(kind, environ=TWO_RANKS).notes
        assert "keeps its weight and its optimizer state, as in plain torch" in note
    assert prepared(Experts).state.absent == ("block.weight", "block.bias")
    assert prepared(BySize, "batch.total=20", "batch.micro=8").state.choices == ("the size of a micro-batch",)
    (error,) = refused(BySize, "batch.total=20", "batch.micro=4")
    assert error.startswith("model and data: 2 parameters get no gradient, e.g. block.weight, block.bias")


class Drifts(Dataset[Any]):
    """Adds noise of a generator of its own."""

    def __init__(self, split: str, **_: Any) -> None:
        self.generator = np.random.default_rng(0)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        return self.generator.normal(size=64).astype(np.float32), index % 10


class Augments(Drifts):
    """Draws from the global generators, which are keyed by sample."""

    def __getitem__(self, index: int) -> Any:
        return torch.rand(64) + random.random() + np.random.rand(), index % 10  # noqa: NPY002


def own_data(name: str) -> list[str]:
    sets = [f"data.{split}={{_target_: {HERE}.{name}, split: {split}}}" for split in ("train", "validation")]
    return [*sets, "batch.total=16"]


def test_a_data_set_with_a_generator_of_its_own_is_refused_on_ranks_and_told_on_one():
    (error,) = refused(None, *own_data("Drifts"))
    assert error.startswith("2 ranks: data.train: sample 0 differs when it is read twice under the same seeds")
    assert "keyed by sample" in error
    assert [note for note in prepared(None, *own_data("Drifts")).notes if "read twice" in note]
    assert not [note for note in prepared(None, *own_data("Augments")).notes if "read twice" in note]
