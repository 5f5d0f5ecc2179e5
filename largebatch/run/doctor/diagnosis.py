"""What was found, how bad it is, and what helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]  # a note costs speed or is good to know; a problem stops runs


@dataclass(frozen=True)
class Diagnosis:
    """One finding.

    Attributes:
        subject: what was looked at.
        state: how bad it is.
        found: the fact, with numbers.
        remedy: what to do; empty where nothing is wrong.

    Raises:
        ValueError: if something is wrong and nothing helps, or nothing is wrong and something would.
    """

    subject: str
    state: State
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if (self.state == "problem") > bool(self.remedy) or (self.state == "ok" and self.remedy):
            raise ValueError(f"{self.subject}: {self.state} with the remedy {self.remedy!r}.")
