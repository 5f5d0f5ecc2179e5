"""What was found, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was looked at, how bad it is, and the fact with its remedy.

    A note costs speed or is good to know; a problem stops runs.
    """

    subject: str
    state: Literal["ok", "note", "problem"]
    found: str
