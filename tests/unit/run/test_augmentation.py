from __future__ import annotations

from typing import Any

import torch

from largebatch.run.augmentation import augment_rows
from largebatch.run.prepare import Prepared, prepare
from largebatch.run.rank_agreement import code_of
from largebatch.run.resume import run_identity
from tests.unit.composing import compose_run

JITTER = "data.augment.transform={_target_:tests.unit.data.own_transforms.Jitter,strength:0.5}"
SMALL = "data=synthetic", "model=mlp", "logger=none", "batch.total=32", "length=2steps"


def prepared(*overrides: str) -> Prepared:
    return prepare(compose_run(*SMALL, *overrides), {})


def test_both_sides_of_the_gap_are_read_without_a_transform() -> None:
    plain, changed = prepared(), prepared(JITTER)
    assert plain.train is plain.train_plain
    for name in ("train_plain", "validation"):
        ours, theirs = getattr(changed, name)[3], getattr(plain, name)[3]
        assert torch.equal(ours[0], theirs[0])
    assert not torch.equal(changed.train[3][0], plain.train[3][0])
    assert not changed.gap_is_augmented


def test_with_views_both_sides_have_them_since_equal_views_would_be_no_task() -> None:
    overrides = "loss=info_nce", "model=two_views", "model.encoder.in_features=64", "data.augment.views=2"
    viewed = prepared(JITTER, *overrides)
    for dataset in (viewed.train, viewed.train_plain, viewed.validation):
        first, second = dataset[3][0]
        assert not torch.equal(first, second)


def test_the_plan_the_identity_and_the_code_know_the_transform() -> None:
    run = prepared(JITTER)
    (row,) = augment_rows(run.config)
    assert row[:2] == ("changed items", "Jitter")
    identity: Any = run_identity(run)
    assert identity["data"]["augment"]["transform"]["strength"] == 0.5
    assert "tests.unit.data.own_transforms" in code_of(run)
