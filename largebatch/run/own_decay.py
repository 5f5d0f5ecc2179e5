"""A decay that a config names by `_target_`: a function of the samples seen."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from largebatch.batch.schedule import Schedule
from largebatch.run.config.targets import TargetError, check_arguments, find_target, make

_KEY = "schedule.decay"
_SUPPLIED = ("total_samples", "warmup_samples")  # to a function that has arguments of these names
_PLACES = 500


@dataclass(frozen=True)
class OwnDecay:
    """The user's function, called with all samples seen."""

    name: str
    warmup_samples: int
    function: Callable[[int], Any] = field(compare=False)

    def __call__(self, since: int, whole: int) -> float:
        """Factor at this place, as `largebatch.batch.schedule.Decay`."""
        return float(self.function(self.warmup_samples + since))


def own_decay(node: dict[str, Any], *, total_samples: int, warmup_samples: int) -> OwnDecay:
    """The decay of a node: a function f(samples_seen, ...), or a class whose objects are such functions.

    Raises:
        TargetError: if it cannot be made.
    """
    target, known = find_target(_KEY, node), {"total_samples": total_samples, "warmup_samples": warmup_samples}
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    supplied = {name: known[name] for name in _SUPPLIED if name in parameters and name not in node}
    if inspect.isclass(target):
        function = make(_KEY, node, **supplied)
    else:
        first = next(iter(parameters), None)
        check_arguments(_KEY, node, supplied=tuple(one for one in (first, *supplied) if one is not None))
        function = make(_KEY, {**node, "_partial_": True}, **supplied)
    if not callable(function):
        raise TargetError(
            f"{_KEY}._target_={node['_target_']}: a {type(function).__name__} cannot be called. Name a function "
            "f(samples_seen, ...), or a class with __call__(samples_seen)."
        )
    return OwnDecay(node["_target_"].rpartition(".")[2], warmup_samples, function)


def require_pure(schedule: Schedule) -> None:
    """Raise ValueError unless the decay is a function of the samples: asked forwards and backwards, it says the same.

    A resumed run asks for the later places alone, and so do other ranks.
    """
    first, last = schedule.warmup_samples, schedule.total_samples
    places = sorted({first + (last - first) * part // _PLACES for part in range(_PLACES + 1)})
    try:
        forwards = [schedule(place) for place in places]
        backwards = [schedule(place) for place in reversed(places)]
    except (TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"{schedule.decay_name} failed with {type(error).__name__}: {error}") from error
    moved = [place for place, one, other in zip(places, forwards, reversed(backwards), strict=True) if one != other]
    if moved:
        raise ValueError(
            f"{schedule.decay_name} is no function of the samples: after {moved[0]} it gives another factor when it is "
            "asked again. A resumed run would go on at another rate. Compute the factor from samples_seen alone."
        )
