"""Rank 0 tries the run for all ranks, and sends weights that are too many to be made by each of them."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import largebatch.run.one_trial as one_trial
import largebatch.run.prepare as preparing
from largebatch.distributed.signals import StopRequest
from largebatch.run.build import open_run
from largebatch.run.config.reading import ConfigError
from largebatch.run.parts import open_runtime
from largebatch.run.prepare import Prepared, prepare
from largebatch.training.loop import train
from tests.unit.composing import compose_run

SMALL = ("data.limit=64", "batch.total=30", "batch.max_micro=8", "length=3steps", "logger=none",
         "schedule.warmup=1steps", "observers.progress=false")  # fmt: skip
BARE = ("~model.num_classes", "~model.in_channels", "~model.width")
HERE = "tests.multiprocess.test_sent_weights"
MODELS: dict[str, tuple[str, ...]] = {
    "tokens, whose labels the samples show to be moved": (
        "data=text",
        f"data.path={Path(__file__).parents[2] / 'README.md'}",
        "data.vocab_size=256",
        "data.train.tokenizer=bytes",
        "data.validation.tokenizer=bytes",
        "data.context_length=8",
        "model.width=16",
    ),
    "running statistics": ("data=digits", "model=convnet", "model.width=4"),
    "tied, frozen, computed buffers": ("data=digits", f"model._target_={HERE}.Awkward", *BARE),
    "recurrent layers, numpy's and Python's draws": ("data=digits", f"model._target_={HERE}.Recurrent", *BARE),
    "fp64": ("data=digits", "model=mlp", "precision=fp64"),
    "a fused optimizer": ("data=digits", "model=mlp", "optimizer=adamw", "+optimizer.fused=true"),
    "checkpointed activations": (
        "data=digits",
        "model=convnet",
        "model.width=4",
        "precision.activation_checkpointing=blocks\\.\\d+$",
    ),
}
OTHERS = {
    "reads a value": "Reads",
    "keeps a tensor outside of its buffers": "Keeps",
    "keeps a tensor where nobody looks": "Hides",
    "has a hook on a weight": "Hooks",
    "has a hook that uses a weight": "Follows",
    "has two buffers in one memory": "Shares",
    "takes its shapes from a sample": "Waits",
    "keeps a list of its weights": "Lists",
    "draws on the CPU what is no tensor": "Draws",
}


class Awkward(nn.Module):
    """Tied weights with an attribute, a frozen one, an unsaved buffer that comes from values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(64, 16), nn.Linear(16, 16)
        self.twin = nn.Linear(16, 16, bias=False)
        self.twin.weight = self.body.weight
        self.body.weight.note = "kept"  # type: ignore[attr-defined]
        self.stem.bias.requires_grad_(False)
        self.head = nn.Linear(16, 10)
        self.register_buffer("turns", torch.exp(-torch.arange(16) * math.log(100.0) / 16), persistent=False)
        nn.init.orthogonal_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.linspace(-1, 1, 10))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.stem(images.flatten(1)).relu() * self.turns
        return self.head(self.twin(self.body(hidden).relu()))


class Recurrent(nn.Module):
    """Its layer keeps a list of its weights, which follows them; numpy and Python draw a weight and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(8, 4, batch_first=True), nn.Linear(4, 10)
        self.bias = nn.Parameter(torch.from_numpy(np.random.rand(10)).float())  # noqa: NPY002
        self.scale = random.random()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(images.view(-1, 8, 8))[0][:, -1]) * self.scale + self.bias


class Reads(Awkward):
    def __init__(self) -> None:
        super().__init__()
        self.rate = torch.linspace(0, 0.5, 3)[1].item()


class Hides(Awkward):
    def __init__(self) -> None:
        super().__init__()
        scale = torch.full((10,), 0.5)
        self.scaled = lambda outputs: outputs * scale


class Hooks(Awkward):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight.register_hook(lambda grad: grad / 2)


class Follows(Awkward):
    """A hook of a module that uses a weight by itself."""

    def __init__(self) -> None:
        super().__init__()
        weight = self.head.weight
        self.head.register_forward_hook(lambda module, inputs, outputs: outputs + weight.mean())


class Shares(Awkward):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("both", torch.ones(2, 3))
        self.register_buffer("first", self.both[0])


class Waits(Awkward):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(10)


class Keeps(Awkward):
    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.ones(3)


class Lists(Awkward):
    def __init__(self) -> None:
        super().__init__()
        self.mine = [self.head.weight]


class Draws(Awkward):
    def __init__(self) -> None:
        super().__init__()
        self.shift = float(torch.rand((), device="cpu"))


def over_the_group(environ: Any, find_out: Any, **_: Any) -> Any:
    """Rank 0's word by the group that the pool of ranks has, in place of a store."""
    box = [find_out() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box)
    return box[0]


def prepared_as_told(overrides: tuple[str, ...], *, sends: bool) -> Prepared:
    """As in a job, where the other ranks can neither try the run nor, with `sends`, make a weight."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("only rank 0 does this")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(preparing, "word_of_rank0", over_the_group)
        patched.setattr(one_trial, "SENT_FROM_BYTES", 0 if sends else math.inf)
        if dist.get_rank() > 0:
            patched.setattr(one_trial, "dry_run", refuse)
            if sends:
                patched.setattr(one_trial, "initial_model", refuse)
        return prepare(compose_run(*SMALL, *overrides), os.environ, joins=True)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def members(model: nn.Module) -> dict[str, bytes]:
    return {name: bits(one) for named in (model.named_parameters(), model.named_buffers()) for name, one in named}


def same_as_made_here(overrides: tuple[str, ...]) -> None:
    ours, own = prepared_as_told(overrides, sends=True), prepare(compose_run(*SMALL, *overrides), os.environ)
    assert ours.sends_weights
    optimized = {id(one) for group in ours.optimizer.param_groups for one in group["params"]}
    with open_runtime(ours):
        assert members(ours.model) == members(own.model)
    assert optimized == {id(one) for one in ours.model.parameters() if one.requires_grad}
    assert [one.requires_grad for one in ours.model.parameters()] == [
        one.requires_grad for one in own.model.parameters()
    ]
    if isinstance(ours.model, Awkward):
        assert ours.model.twin.weight is ours.model.body.weight
        assert vars(ours.model.body.weight)["note"] == "kept"
    for name in ("content", "state", "notes", "loss"):
        assert getattr(ours, name) == getattr(own, name)


@pytest.mark.parametrize("name", MODELS)
def test_weights_that_are_sent_are_those_that_each_rank_would_have_made(ranks, name: str):
    ranks(2).run(same_as_made_here, MODELS[name])


def trained(folder: Path, overrides: tuple[str, ...], sends: bool | None) -> dict[str, bytes]:
    given = (*overrides, f"run.dir={folder}")
    ready = prepare(compose_run(*SMALL, *given), os.environ) if sends is None else prepared_as_told(given, sends=sends)
    with StopRequest() as stop, open_run(ready, stop, []) as opened:
        assert train(opened.run) == "finished"
        return members(opened.run.module)


OWN_LOSS = (*MODELS["fp64"], "loss=module", "loss._target_=tests.unit.losses.test_named_functions.focal")


@pytest.mark.parametrize("overrides", [(*MODELS["running statistics"], "optimizer=lars"), MODELS["fp64"], OWN_LOSS,
                                       (*OWN_LOSS, "data.augment.mixup=0.2")])  # fmt: skip
def test_a_run_is_the_same_bit_for_bit_whoever_makes_its_weights(ranks, tmp_path: Path, overrides: tuple[str, ...]):
    """Tried by each rank; tried by rank 0; tried and made by rank 0."""
    expected = ranks(3).run(trained, tmp_path / "each", overrides, None)
    assert ranks(3).run(trained, tmp_path / "told", overrides, False) == expected
    assert ranks(3).run(trained, tmp_path / "sent", overrides, True) == expected


def made_by_each(model: str) -> tuple[bool, tuple[str, ...]]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(preparing, "word_of_rank0", over_the_group)
        patched.setattr(one_trial, "SENT_FROM_BYTES", 0)
        ready = prepare(
            compose_run(*SMALL, "data=digits", f"model._target_={HERE}.{model}", *BARE), os.environ, joins=True
        )
        with open_runtime(ready):
            return ready.sends_weights, ready.notes


@pytest.mark.parametrize("model", OTHERS.values(), ids=OTHERS)
def test_a_model_that_needs_values_is_made_by_each_rank_with_a_word(ranks, model: str):
    for sends, notes in ranks(2).run(made_by_each, model):
        assert not sends
        (note,) = [one for one in notes if "cannot be made on torch's meta device" in one]
        assert f"because {model} " in note


def refused() -> list[str]:
    with pytest.raises(ConfigError) as error:
        prepared_as_told(("data=digits", "model=mlp", "batch.total=0"), sends=True)
    return error.value.errors


def test_what_rank_0_refuses_every_rank_refuses_with_the_same_list(ranks):
    first, *others = ranks(3).run(refused)
    assert others == [first] * 2
    assert first
