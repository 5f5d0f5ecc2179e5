"""The noisy quadratic that a config trains, as its closed form."""

from __future__ import annotations

import numpy as np

from largebatch.diagnostics.closed_forms import NoisyQuadratic
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.weight_path import Float64Array
from largebatch.run.config.reading import ConfigError


def quadratic_task(experiment: Experiment) -> tuple[NoisyQuadratic, Float64Array]:
    """The task and its first weights, [d].

    Raises:
        ConfigError: if data and model are not those of the noisy quadratic.
    """
    config = experiment.config
    try:
        curvature, noise = (
            np.repeat(np.array(list(values), dtype=np.float64), copies)
            for values, copies in (
                (config.model.curvature, config.model.copies),
                (config.data.train.noise_variance, config.data.train.copies),
            )
        )
        task = NoisyQuadratic(curvature, noise)
    except (AttributeError, ValueError) as error:
        raise ConfigError(
            [f"data.train.noise_variance: {error} This experiment compares its runs with the closed forms of the noisy "
             "quadratic. Leave data and model as they are."]
        ) from None  # fmt: skip
    return task, np.ones(len(curvature)) * np.asarray(config.model.start, dtype=np.float64)
