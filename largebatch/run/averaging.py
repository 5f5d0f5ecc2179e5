"""The average of the weights that a config asks for."""

from __future__ import annotations

from largebatch.batch.duration import Duration
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import RunNumbers
from largebatch.training.weight_average import AverageSettings


def average_settings(config: TrainConfig, numbers: RunNumbers) -> AverageSettings | None:
    """The average in samples; None: the config asks for none.

    Raises:
        ConfigError: with all errors.
    """
    ema, total = config.ema, numbers.plan.global_batch_size
    if problems := ema.problems():
        raise ConfigError(problems)
    if not ema.is_used:
        return None
    start = _samples("start", ema.start, numbers) if ema.start is not None else 0
    if start >= numbers.num_consumed:
        raise ConfigError(
            [f"ema.start={ema.start}: is {start:,} samples, and the run ends after {numbers.num_consumed:,}. Begin "
             "earlier."]
        )  # fmt: skip
    if ema.every > numbers.num_steps:
        raise ConfigError([f"ema.every={ema.every}: the run has {numbers.num_steps} steps. Update more often."])
    if ema.half_life is not None:
        half_life = _samples("half_life", ema.half_life, numbers)
        if half_life == 0:
            raise ConfigError([f"ema.half_life={ema.half_life}: is above 0. Use null for no average."])
        return AverageSettings.of_half_life(half_life, start=start, every=ema.every)
    if ema.decay is not None:
        return AverageSettings.of_decay(ema.decay, ema.decay_batch_size or total, start=start, every=ema.every)
    return AverageSettings(None, start, ema.every)


def _samples(key: str, text: str, numbers: RunNumbers) -> int:
    duration, plan = Duration.parse(text), numbers.plan
    if duration.unit == "steps" and len(numbers.ramp.plans) > 1:
        raise ConfigError(
            [f"ema.{key}={text}: steps have several sizes in this run, whose batch changes. Write it in samples or "
             "epochs."]
        )  # fmt: skip
    return duration.samples(num_samples=numbers.num_samples, global_batch_size=plan.global_batch_size)
