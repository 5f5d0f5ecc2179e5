"""Which LARS and which LAMB: the switches in which the algorithms of these names differ, as values of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class LarsForm:
    """The options of `LARS` that choose its formula; they are explained there. The defaults are the paper's."""

    denominator: str = "split"
    lr_placement: str = "inside"
    nesterov: bool = False
    clip: bool = False
    eps: float = 0.0
    adapt_undecayed: bool = True

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> LarsForm:
        """The form that a parameter group asks for."""
        return cls(**{field.name: group[field.name] for field in fields(cls)})

    @property
    def is_paper(self) -> bool:
        """Whether every option has the paper's value."""
        return self == LarsForm()


@dataclass(frozen=True)
class LambForm:
    """The options of `LAMB` that choose its formula; they are explained there. The defaults are the paper's (v5)."""

    bias_correction: bool = True
    decay_placement: str = "inside"
    norm_bounds: Sequence[float] | None = None
    trust_clip: bool = False
    max_grad_norm: float | None = None
    grad_averaging: bool = True
    adapt_undecayed: bool = True

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> LambForm:
        """The form that a parameter group asks for."""
        return cls(**{field.name: group[field.name] for field in fields(cls)})

    @property
    def is_paper(self) -> bool:
        """Whether every option has the paper's value."""
        return self == LambForm()


def fill_with_paper(groups: Sequence[dict[str, Any]], paper: LarsForm | LambForm) -> None:
    """Give groups that were saved before an option existed the value that they were stepped with: the paper's."""
    for group in groups:
        for name, value in asdict(paper).items():
            group.setdefault(name, value)
