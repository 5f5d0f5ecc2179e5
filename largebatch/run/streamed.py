"""Data sets that are streams: what of the run's contract holds for them, and the settings that do not go with them."""

from __future__ import annotations

from typing import Any

from largebatch.data import StreamSamples
from largebatch.data.iterables import stream_of
from largebatch.run.config.findings import Findings
from largebatch.run.config.schema import TrainConfig


def streamed(key: str, dataset: Any, config: TrainConfig, findings: Findings) -> StreamSamples:
    """A stream of the config as samples by position; notes say what holds.

    Raises:
        ValueError: if its length is needed and not known, or it cannot be read twice alike.
    """
    options = config.data.stream
    if key == "data.validation":
        made = StreamSamples(dataset, num_samples=options.validation, kept=options.validation, seed=config.seed)
        findings.notes.append(f"{key}: the first {len(made):,} samples of a stream, kept in memory.")
        return made
    num_samples = options.samples or _own_length(dataset)
    if num_samples is None:
        raise ValueError(
            f"{type(dataset).__name__} is a stream without a length: give data.stream.samples, the samples of a pass, "
            "which is an epoch. Of an endless stream any number from the samples of the run on."
        )
    made = StreamSamples(dataset, num_samples=num_samples, kept=options.kept, seed=config.seed)
    if key == "data.train":
        findings.notes += [f"{key}: {note}" for note in _what_holds(made, config)]
    return made


def stream_problems(config: TrainConfig, train: Any) -> list[str]:
    """Errors of settings that need samples by index, or a stream where there is none."""
    data = config.data
    if train is None:
        return []
    if stream_of(train) is None:
        given = data.stream.samples
        return [] if given is None else [f"data.stream.samples={given}: data.train is no stream. Remove it."]
    problems = {
        f"data.limit={data.limit}": (data.limit, "give data.stream.samples, which ends each pass"),
        f"data.label_noise={data.label_noise}": (data.label_noise, "add noise in the stream"),
        "data.order": (data.order, "it gives its samples in its own order"),
        "data.on_bad_sample=skip": (data.skips, "a stream that fails does not go on. Leave bad samples out in it"),
        "batch.total=full": (config.batch.total == "full", "give a number of samples"),
    }
    return [f"{key}: data.train is a stream: {remedy}." for key, (is_set, remedy) in problems.items() if is_set]


def _own_length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _what_holds(stream: StreamSamples, config: TrainConfig) -> list[str]:
    readers = (
        "every rank" if not config.data.num_workers else f"each of {config.data.num_workers} workers of every rank"
    )
    resume = (
        "a resume begins by its `skip`"
        if stream.skips_ahead
        else f"a resume reads what was seen again, {1000 * stream.seconds_per_sample:.2g} s per 1,000 samples here"
    )
    return [
        f"a stream in its own order, which the run does not shuffle; a pass is {stream.num_samples:,} samples. "
        f"{readers[0].upper()}{readers[1:]} reads all of it and computes its share; {resume}.",
        "samples, learning rates and weights are the same on any ranks, and after a resume, if the stream gives the "
        "same samples each time: its first were read twice, and ranks compare them. Later ones are not compared.",
    ]
