"""The linear regression that several experiments descend on, and its closed forms."""

from __future__ import annotations

import numpy as np

from largebatch.diagnostics.closed_forms import LeastSquares
from largebatch.experiments.textbook.bands import agreement
from largebatch.experiments.textbook.experiment import Experiment
from largebatch.experiments.textbook.training_set import training_set
from largebatch.experiments.textbook.weight_path import Float64Array
from largebatch.run.config.reading import ConfigError


def least_squares(experiment: Experiment) -> LeastSquares:
    """Closed forms of the config's training set.

    Raises:
        ConfigError: if the task is no linear regression.
    """
    config, data = experiment.config, training_set(experiment)
    try:
        limit = slice(config.data.limit)
        return LeastSquares(data.inputs[limit], data.targets[limit], bias=config.model.get("bias", True))
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            [f"data.train._target_={config.data.train.get('_target_')}: {error} This experiment compares its runs with "
             "the closed forms of a linear regression. Leave data, model and loss as they are."]
        ) from None  # fmt: skip


def noise_floor(task: LeastSquares, global_batch_size: int, lr: float) -> float:
    """Expected L(w) - L(w*) at the ends of late epochs, by noise alone: of the noisy quadratic model near w*.

    Shuffling lowers it, by a known factor where batches fill the epoch; elsewhere it is the floor of fresh draws.
    """
    model, num_samples = task.near_minimiser(), len(task.design)
    if num_samples % global_batch_size:
        moments = model.stationary_variance(lr=lr, global_batch_size=global_batch_size)
    else:
        # From the minimiser on: after many epochs all distance comes from noise.
        moments = model.epoch_second_moments(
            np.zeros(len(model.curvature)),
            lr=lr,
            num_epochs=1000,
            global_batch_size=global_batch_size,
            num_samples=num_samples,
        )[-1]
    return 0.5 * float(model.curvature @ moments)


def floor_sentence(name: str, floors: Float64Array, expected: float, *, is_shuffled: bool) -> str:
    """A sentence on how far noise keeps a descent above the minimum, measured and by `noise_floor`.

    Args:
        name: the descent.
        floors: measured, [seeds].
        expected: by the model, as `noise_floor` returns it.
        is_shuffled: whether the model knows that every epoch holds each sample once; else it has fresh draws.
    """
    ratio = agreement(floors / expected)
    why = ", because a shuffled epoch holds every sample once, which leaves less noise"
    explained = why if not is_shuffled and ratio.is_below else ""
    drawn = "of shuffled epochs" if is_shuffled else "if its batches were fresh draws"
    return (
        f"Noise keeps {name} {floors.mean():.2g} above the minimum in late epochs. That is {ratio.value:.2f} times "
        f"the prediction of the quadratic model near the minimum {drawn}{ratio.interval}: {ratio.words}{explained}."
    )
