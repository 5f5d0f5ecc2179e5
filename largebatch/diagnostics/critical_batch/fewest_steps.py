"""Who needs the fewest steps to a target at each batch size, in numbers and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from largebatch.diagnostics.critical_batch.steps_to_target import StepsToTarget, steps_text
from largebatch.diagnostics.intervals import LEAST_SEEDS

# Optimizer -> its measurements, one per batch size.
Measured = Mapping[str, Sequence[StepsToTarget]]


@dataclass(frozen=True)
class Ranking:
    """The optimizers at one batch size.

    Attributes:
        batch_size: in samples.
        ordered: optimizer and its measurement; the fewest median steps first, lower bounds last.
    """

    batch_size: int
    ordered: tuple[tuple[str, StepsToTarget], ...]

    @property
    def winners(self) -> list[str]:
        """Whose median is the least; several at a tie, none where nobody's median reached the target."""
        reached = [(name, one.median[0]) for name, one in self.ordered if not one.median[1]]
        return [name for name, steps in reached if steps == reached[0][1]]

    def sentence(self) -> str:
        """All of them, the winner first, and whether the seeds tell it from the others.

        >>> few, many = StepsToTarget(64, (9.0, 10.0, 11.0)), StepsToTarget(64, (18.0, 20.0, 22.0))
        >>> rankings({"SGD": [few], "LAMB": [many]})[0].sentence()
        'At batch 64 SGD needs 10 steps to the target, LAMB 20; ranges of seeds do not overlap.'
        >>> close = {"SGD": [StepsToTarget(64, (5.29,))], "LARS": [StepsToTarget(64, (5.4,))]}
        >>> rankings(close)[0].sentence()
        'At batch 64 SGD needs 5.29 steps to the target, LARS 5.4; 1 seed: no interval.'
        """
        (best, first), *others = ((name, _steps(one)) for name, one in self.ordered)
        unit = "step" if first == "1" else "steps"
        listed = "".join(f", {name} {steps}" for name, steps in others)
        return f"At batch {self.batch_size:,} {best} needs {first} {unit} to the target{listed}; {self._doubt()}."

    def _doubt(self) -> str:
        """Whether the seeds tell the first from each of the others."""
        (_, best), *others = self.ordered
        seeds = min(one.num_replicates for _, one in self.ordered)
        if best.interval is None or all(_least(one) is None for _, one in others):
            few = seeds < LEAST_SEEDS or any(one.summarised for _, one in self.ordered)
            return f"{seeds} seed{'s' * (seeds != 1)}: no interval" if few else "not every seed reached the target"
        low = {name: _least(one) for name, one in others}
        apart = [name for name, end in low.items() if end is not None and end > best.interval[1]]
        near = [name for name, end in low.items() if end is not None and end <= best.interval[1]]
        unknown = [name for name, end in low.items() if end is None]
        level = min([best.level, *(one.level for _, one in others if one.interval is not None)])
        word = "intervals" if level >= 0.95 else "ranges of seeds"
        if len(others) == 1:  # nobody else to be told from
            return f"{word} do not overlap" if apart else f"{word} overlap: no clear difference"
        clauses = [f"{word} do not overlap with {_theirs(apart)}"] if apart else []
        clauses += [f"{word} overlap with {_theirs(near)}: no clear difference there"] if near else []
        clauses += [f"no interval for {' and '.join(unknown)}"] if unknown else []
        return "; ".join(clauses)


def rankings(measured: Measured) -> list[Ranking]:
    """One for each batch size at which at least two optimizers were measured, ascending."""
    by_size: dict[int, list[tuple[str, StepsToTarget]]] = {}
    for name, points in measured.items():
        for one in points:
            by_size.setdefault(one.batch_size, []).append((name, one))
    return [
        Ranking(size, tuple(sorted(by_size[size], key=lambda pair: pair[1].median[::-1])))
        for size in sorted(by_size)
        if len(by_size[size]) > 1
    ]


def fewest_steps(measured: Measured) -> list[str]:
    """Who wins where, then all numbers at the largest and at the smallest batch size; nothing for one optimizer.

    >>> def points(*steps):
    ...     return [StepsToTarget(size, (one,) * 3) for size, one in zip((8, 16, 32), steps)]
    >>> fewest_steps({"SGD": points(90.0, 50.0, 20.0), "LAMB": points(80.0, 60.0, 40.0)})[0]
    'Fewest steps to the target: LAMB at batch 8, SGD at batch 16 to 32.'
    """
    found = [one for one in rankings(measured) if one.winners]
    if not found:
        return []
    ends = [found[-1], found[0]] if len(found) > 1 else found
    return [_who(found), *(one.sentence() for one in ends)]


def _who(found: Sequence[Ranking]) -> str:
    stretches = [(winners, list(group)) for winners, group in groupby(found, key=lambda one: one.winners)]
    if len(stretches) == 1 and len(found) > 1:
        return f"{' and '.join(stretches[0][0])} needs the fewest steps to the target at all {len(found)} batch sizes."
    parts = [
        f"{' and '.join(winners)} at batch {group[0].batch_size:,}"
        + (f" to {group[-1].batch_size:,}" if len(group) > 1 else "")
        for winners, group in stretches
    ]
    return f"Fewest steps to the target: {', '.join(parts)}."


def _theirs(names: Sequence[str]) -> str:
    return " and ".join(f"{name}'s" for name in names)


def _steps(one: StepsToTarget) -> str:
    median, hidden = one.median
    return f"{'more than ' * hidden}{steps_text(median)}"


def _least(one: StepsToTarget) -> float | None:
    """The lower end of what its seeds needed; of seeds that all ran out of steps, the fewest that they were given."""
    if one.interval is not None:
        return one.interval[0]
    is_bound = one.censored and not one.reached and one.num_replicates >= LEAST_SEEDS
    return min(one.censored) if is_bound else None
