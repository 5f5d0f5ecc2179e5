"""Trains the runs of an experiment, each of them a change of one composed config."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from largebatch.experiments.local_ranks import on_local_ranks
from largebatch.experiments.textbook.weight_path import Float64Array, WeightPath
from largebatch.run.train_quietly import Trained, train_quietly
from largebatch.training.loop import Observer


class Experiment:
    """The config of an experiment, and the folder of its runs.

    Args:
        config: of `largebatch train`, composed, without the section `textbook`.
        compose: composes the config with other choices of groups (`optimizer=lars`); overrides apply afterwards.
        folder: the experiment's.
        on_run: called with the name of each run that begins, and the number of runs before it.

    Attributes:
        runs: folders of the runs so far, relative to the experiment's.
    """

    def __init__(
        self,
        config: DictConfig,
        folder: str | Path,
        *,
        compose: Callable[[Sequence[str]], DictConfig] | None = None,
        on_run: Callable[[str, int], None] = lambda name, number: None,
    ) -> None:
        self.config = config
        self.folder = Path(folder)
        self.runs: list[str] = []
        self._compose = compose
        self._on_run = on_run
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def train(self, name: str, *overrides: str, observers: Sequence[Observer] = ()) -> Trained:
        """Train a run into FOLDER/runs/NAME, silently.

        Args:
            name: of the run; no two have the same.
            overrides: its changes, as on the command line: `batch.total=64`, `optimizer=lars`.
            observers: called after those of the config.

        Raises:
            ConfigError: with all that is wrong, before anything is written.
        """
        relative = self._begin(name)
        config = self._named(name, overrides)
        trained = train_quietly(config, self.folder / relative, overrides=overrides, observers=observers)
        self.runs.append(relative)
        return trained

    def train_on_ranks(self, name: str, world_size: int, *overrides: str) -> Float64Array:
        """Train on new processes of this machine; returns the path of the weights, [steps + 1, p]."""
        relative = self._begin(name)
        config = self._named(name, overrides)
        weights: Float64Array = on_local_ranks(
            world_size, train_on_rank, OmegaConf.to_container(config), str(self.folder / relative), overrides
        )
        self.runs.append(relative)
        return weights

    def config_of(self, *overrides: str) -> DictConfig:
        """The config of a run: a copy, to be changed at will. Hydra composes once per combination of choices."""
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        choices = [one for one in parsed if self._is_group(one.key_or_group)]
        config = copy.deepcopy(self._with_choices(tuple(str(one.input_line) for one in choices)))
        for one in parsed:
            if one not in choices:
                OmegaConf.update(config, one.key_or_group, one.value(), merge=True, force_add=one.is_add())
        return config

    def _begin(self, name: str) -> str:
        relative = f"runs/{name}"
        assert relative not in self.runs, name
        self._on_run(name, len(self.runs))
        return relative

    def _named(self, name: str, overrides: Sequence[str]) -> DictConfig:
        config = self.config_of(*overrides)
        OmegaConf.update(config, "run.name", name)
        return config

    def _is_group(self, key: str) -> bool:
        """Whether a value of this key is the name of a choice. `run` and `data.augment` are only groups of keys."""
        groups = ("batch", "scaling", "schedule", "optimizer", "loss", "model", "data", "precision", "observers")
        return key in groups

    def _with_choices(self, choices: tuple[str, ...]) -> DictConfig:
        if not choices:
            return self.config
        if choices not in self._composed:
            assert self._compose is not None, f"{choices} need to be composed"
            self._composed[choices] = self._compose(choices)
        return self._composed[choices]


def train_on_rank(config: dict[str, Any], folder: str, overrides: Sequence[str]) -> Float64Array:
    """On every rank of the launcher: train, and return the path of the weights."""
    path = WeightPath()
    train_quietly(OmegaConf.create(config), folder, overrides=overrides, observers=[path])
    return path.weights
