"""Isolates runs and records that cannot be drawn: the page leaves them out by name, and shows the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from largebatch.records.report.evidence import Evidence, LeftOut

Drawn = TypeVar("Drawn")


def draw_without_broken(evidence: Evidence, draw: Callable[[Evidence], Drawn]) -> Drawn:
    """`draw(evidence)`; if that raises, `draw` of all that can be drawn, with the rest among `left_out`."""
    try:
        return draw(evidence)
    except Exception:  # the culprit is searched below
        pass
    alone = [(path, _problem(evidence.only({path}), draw)) for path in evidence.paths]
    sound = evidence.without([LeftOut(path, problem) for path, problem in alone if problem])
    try:
        return draw(sound)
    except Exception:  # some are sound alone, but not together
        pass
    kept: list[Path] = []
    broken: list[LeftOut] = []
    for path in sound.paths:
        if problem := _problem(sound.only({path, *kept}), draw):
            broken.append(LeftOut(path, problem))
        else:
            kept.append(path)
    sound = sound.without(broken)
    return draw(sound)


def _problem(evidence: Evidence, draw: Callable[[Evidence], object]) -> str:
    try:
        draw(evidence)
    except Exception as error:
        return f"cannot be drawn: {type(error).__name__}: {error}"
    return ""
