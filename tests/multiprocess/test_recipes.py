"""Recipes of the literature have the published numbers, and their short forms train alike on one and two ranks."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from largebatch import conf_dir
from largebatch.run.build import open_run
from largebatch.run.config.reading import parse_config
from largebatch.run.config.token_units import in_samples
from largebatch.run.derive import RunNumbers, derive
from largebatch.run.prepare import prepare
from largebatch.training.loop import train
from tests.unit.composing import compose_run

FOLDER = Path(conf_dir()) / "experiment" / "recipe"
IMAGENET = 1_281_167
TOKENS = 1024  # of a window of GPT-2


@dataclass(frozen=True)
class Published:
    """Numbers of a recipe as its source has them, or as they follow from it by hand."""

    data: str
    num_samples: int
    ranks: int
    start_lr: float
    peak_lr: float
    end_lr: float
    warmup_samples: int
    num_steps: int


PUBLISHED = {
    # Goyal et al. 2017, section 5.1: 0.1 x 8192 / 256, from 0.1 over 5 epochs, divided by 10 after 30, 60 and 80 of 90.
    "resnet50_sgd": Published("drawn_images", IMAGENET, 256, 0.1, 3.2, 0.0032, 5 * IMAGENET, 14_075),
    # mlcommons/logging, reference convergence points: opt_learning_rate_decay_steps=2267, warmup of 16 epochs.
    "resnet50_lars": Published("drawn_images", IMAGENET, 256, 0.0, 21.2, 1e-4, 16 * IMAGENET, 2_267),
    # The same: 6095 steps of decay after 5 epochs of warmup.
    "resnet50_lars_8k": Published("drawn_images", IMAGENET, 128, 0.0, 17.0, 1e-4, 5 * IMAGENET, 6_881),
    # Chen et al. 2020, section 4: "learning rate of 4.8 (= 0.3 x BatchSize/256)", 10 of 100 epochs of warmup.
    "simclr": Published("drawn_images", IMAGENET, 128, 0.0, 4.8, 0.0, 10 * IMAGENET, 31_278),
    # FINETUNE.md of MAE: blr 5e-4, effective batch size 1024, 100 epochs; min_lr 1e-6 and 5 epochs are its defaults.
    "vit_finetune": Published("drawn_images", IMAGENET, 32, 0.0, 2e-3, 1e-6, 5 * IMAGENET, 125_113),
    # nanoGPT: 12 x 1024 x 40 tokens per step, 2000 and 600,000 iterations, 6e-4 to 6e-5.
    "gpt2_adamw": Published("drawn_tokens", 8_823_530, 8, 0.0, 6e-4, 6e-5, 2000 * 480, 600_000),
    # Brown et al. 2020: warmup over 375 million tokens; the tokens are those of nanoGPT. By hand: a billion tokens each
    # in steps of 32, 144, 256 and 368 windows, 43,768 steps, and the rest in 480.
    "gpt2_muon_ramp": Published("drawn_tokens", 8_823_530, 8, 0.0, 6e-4, 6e-5, 375_000_000 // TOKENS, 635_630),
    # NVIDIA's run_pretraining_lamb.sh: 6e-3, 0.2843 x 7038 steps, then 4e-3, 0.128 x 1563 steps.
    "bert_lamb": Published("drawn_words", 8_000_000, 64, 0.0, 6e-3, 0.0, 2001 * 65_536, 7_038),
    "bert_lamb_phase2": Published("drawn_words", 8_000_000, 64, 0.0, 4e-3, 0.0, 200 * 32_768, 1_563),
}


def numbers_of(recipe: str) -> RunNumbers:
    known = PUBLISHED[recipe]
    config = parse_config(compose_run(f"experiment=recipe/{recipe}", f"data={known.data}"))
    errors: list[str] = []
    config = in_samples(config, TOKENS, errors)
    assert errors == []
    return derive(config, num_samples=known.num_samples, world_size=known.ranks)


def test_every_recipe_has_its_published_numbers() -> None:
    assert set(PUBLISHED) == {file.stem for file in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_rates_warmup_and_steps_are_the_published_ones(recipe: str) -> None:
    known, numbers = PUBLISHED[recipe], numbers_of(recipe)
    total = numbers.schedule.total_samples
    assert numbers.lr_at(0) == pytest.approx(known.start_lr, rel=1e-12)
    assert numbers.lr_at(known.warmup_samples) == pytest.approx(known.peak_lr, rel=1e-12)
    assert numbers.lr_at(total) == pytest.approx(known.end_lr, rel=0.01, abs=1e-12)
    assert numbers.schedule.warmup_samples == known.warmup_samples
    assert numbers.num_steps == known.num_steps


def test_batches_and_milestones_are_the_published_ones() -> None:
    sgd = numbers_of("resnet50_sgd")
    assert [sgd.lr_at(epoch * IMAGENET) for epoch in (29, 31, 61, 81)] == pytest.approx([3.2, 0.32, 0.032, 0.0032])
    assert set(sgd.plan.micro_batch_sizes) == {32}
    eight = numbers_of("resnet50_lars_8k")
    decay_steps = (eight.schedule.total_samples - eight.schedule.warmup_samples) / 8192
    assert decay_steps == pytest.approx(6_095, rel=1e-3)
    ramp = numbers_of("gpt2_muon_ramp").ramp
    assert [plan.global_batch_size * TOKENS for plan in ramp.plans] == [32_768, 147_456, 262_144, 376_832, 491_520]
    assert [milestone * TOKENS for milestone in ramp.milestones] == pytest.approx([1e9, 2e9, 3e9, 4e9], rel=1e-5)
    both = sum(PUBLISHED[name].num_steps for name in ("bert_lamb", "bert_lamb_phase2"))
    assert both == pytest.approx(8_599, rel=1e-3)  # You et al. 2019, table 1


def short_form(recipe: str) -> list[str]:
    """The overrides of the second command in the comment of a recipe."""
    (line,) = [one for one in (FOLDER / f"{recipe}.yaml").read_text().splitlines() if "debug=short" in one]
    words = shlex.split(line.removeprefix("#"))
    assert words[:4] == ["python", "-m", "largebatch", "train"]
    assert words[4] == f"experiment=recipe/{recipe}"
    return words[4:]


def trained(recipe: str, folder: Path) -> tuple[list[np.ndarray], int]:
    quiet = "observers.progress=false", "observers.evaluation.every=null", f"run.root={folder}"
    composed = compose_run(*short_form(recipe), "precision=fp64", *quiet)
    with open_run(prepare(composed, os.environ), lambda: False, []) as opened:
        assert train(opened.run) == "finished"
        return [one.detach().numpy().copy() for one in opened.run.module.parameters()], opened.run.progress.step


# The two others differ from theirs in numbers alone.
@pytest.mark.parametrize("recipe", sorted(PUBLISHED.keys() - {"resnet50_lars_8k", "bert_lamb_phase2"}))
def test_the_short_form_takes_the_same_steps_on_one_and_two_ranks(ranks, tmp_path, recipe):
    ((alone, steps),) = ranks(1).run(trained, recipe, tmp_path / "alone")
    assert steps >= 12
    for weights, _ in ranks(2).run(trained, recipe, tmp_path / "two"):
        for ours, theirs in zip(weights, alone, strict=True):
            # Rounding grows through the steps, most at the large rates of LARS.
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8 * max(float(np.abs(theirs).max()), 1e-3))
