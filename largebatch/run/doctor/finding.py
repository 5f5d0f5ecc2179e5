"""One finding of `largebatch doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Subject, severity, and the fact with its remedy.

    A note is information or costs speed; a problem stops runs.
    """

    subject: str
    state: Literal["ok", "note", "problem"]
    found: str
