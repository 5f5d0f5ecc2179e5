"""The training set of an experiment, for measurements beside its runs."""

from __future__ import annotations

from typing import Any

from largebatch.data import FirstSamples
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.targets import TargetError, make


def training_set(experiment: Experiment) -> Any:
    """The data set of `data.train`, cut to `data.limit` samples.

    Raises:
        ConfigError: if it cannot be made.
    """
    data = experiment.config.data
    try:
        dataset = make("data.train", dict(data.train))
        return dataset if data.limit is None else FirstSamples(dataset, data.limit)
    except TargetError as error:
        raise ConfigError([str(error)]) from None
    except (ValueError, OSError) as error:
        raise ConfigError([f"data.train: {error}"]) from None
