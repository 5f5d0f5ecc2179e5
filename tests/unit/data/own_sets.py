"""Data sets as people write them, for whole runs."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.utils.data import Dataset

from tests.unit.composing import compose_run


class Jittered(Dataset[Any]):
    """Points of 4 classes; with `augment`, moved by noise of this size whenever they are read."""

    def __init__(self, split: str, augment: float = 0.0, text: bool = False) -> None:
        self.start, self.augment, self.text = (0 if split == "train" else 1000), augment, text

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(self.start + index)
        point = torch.randn(8, generator=generator) + index % 4
        if self.augment:
            point = point + self.augment * torch.randn(8)
        return {"inputs": point, "name": f"point {index}", "label": index % 4} if self.text else (point, index % 4)


def jittered(*overrides: str, augment: float, plain: bool = False, validation: float = 0.0) -> DictConfig:
    """A train config on `Jittered`, with `data.train_plain` if `plain`."""
    config = compose_run("data=synthetic", "model=linear", "logger=none", "precision=fp64", *overrides)
    target = "tests.unit.data.own_sets.Jittered"
    with open_dict(config):
        config.data.num_classes, config.data.num_features = 4, 8
        config.data.train = OmegaConf.create({"_target_": target, "split": "train", "augment": augment})
        config.data.validation = OmegaConf.create({"_target_": target, "split": "validation", "augment": validation})
        if plain:
            config.data.train_plain = OmegaConf.create({"_target_": target, "split": "train"})
    return config
