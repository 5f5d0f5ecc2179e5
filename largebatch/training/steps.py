"""The optimizer steps of a run: which is next, and what it is to compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from largebatch.batch.ramp import BatchRamp
from largebatch.batch.random_keys import stream_key
from largebatch.gradient.batch_stream import BatchStream
from largebatch.gradient.step import Measures, Step
from largebatch.training.progress import Progress

Asks = Callable[[Step], Measures]


class Steps:
    """Makes one `Step` after the other, the same on every rank.

    Collectives follow these steps, not the run's `progress`: were that wrong on one rank, its collectives would meet
    other ones of other ranks before anybody could tell.

    Args:
        batches: of the run; their plans are those of the steps.
        lr_at: samples seen -> learning rate of the step that starts there.
        num_steps: of the whole run.
        seed: of the run; draws inside the model are keyed by (seed, samples seen, micro-batch).
        always: measurements of every step.
        refused: what none can measure, each with the error; see `GradientOptions.refused`.

    Attributes:
        number: of the latest step; 0 before the first one.
    """

    def __init__(
        self,
        batches: BatchStream,
        lr_at: Callable[[int], float],
        num_steps: int,
        *,
        seed: int = 0,
        always: Measures = Measures.NONE,
        refused: Mapping[Measures, str] | None = None,
    ) -> None:
        self.batches, self.lr_at, self.num_steps = batches, lr_at, num_steps
        self.number = self._samples_seen = 0
        self.seed, self.always, self._refused = seed, always, refused or {}
        self._asks: tuple[Asks, ...] = ()
        self._has_begun = False

    def begin(self, progress: Progress, asks: Iterable[Asks] = ()) -> None:
        """The next step is the one after `progress`; each of `asks` says what a step is to measure."""
        self.number, self._samples_seen = progress.step, progress.samples_seen
        self._asks, self._has_begun = tuple(asks), True
        self.batches.begin(self._samples_seen, self.num_steps - self.number)

    def end_after(self, num_steps: int) -> None:
        """Let the run go on, or end, after `num_steps` steps, counted from its beginning."""
        self.num_steps = num_steps

    def follow(self, ramp: BatchRamp, lr_at: Callable[[int], float], num_steps: int) -> None:
        """Go on by another ramp, its rates and its number of steps, from the next step on; on every rank alike.

        The steps before it must be the same in both: what was loaded ahead for the old ramp is dropped, and the loader
        begins again at the position of the next step, so no sample is left out or comes twice.
        """
        self.lr_at, self.num_steps = lr_at, num_steps
        self.batches.follow(ramp)
        if self._has_begun:
            self.batches.begin(self._samples_seen, self.num_steps - self.number)

    def next(self) -> Step | None:
        """The next step; None: the run is done.

        Raises:
            ValueError: if it is to measure what it cannot; on every rank alike, as all ask for the same.
        """
        if self.number >= self.num_steps:
            return None
        position, plan = self._samples_seen, self.batches.ramp.at(self._samples_seen)
        self.number += 1
        self._samples_seen += plan.global_batch_size
        key, is_last = stream_key(self.seed, "forward", position), self.number == self.num_steps
        step = Step(self.number, position, plan, self.lr_at(position), key, is_last)
        measures = self.always
        for asks in self._asks:
            measures |= asks(step)
        for measure, error in self._refused.items():
            if measure in measures:
                raise ValueError(error)
        return replace(step, measures=measures)
