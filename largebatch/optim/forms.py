"""Which LARS and which LAMB: the switches in which the algorithms of these names differ, as values of a group."""

from __future__ import annotations

import math
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
    def is_fused(self) -> bool:
        """Whether the fused path has this form: torch's kernel knows no rate of a tensor's own for a look ahead."""
        return self.denominator == "split" and not self.nesterov

    def ratio_options(self, *, lr: float, weight_decay: float, trust_coefficient: float) -> dict[str, Any]:
        """Arguments of `trust_ratio` besides the norms."""
        if self.clip:  # lr ratio becomes min(trust_coefficient ..., lr): the rate is a bound, the ratio the rate itself
            trust_coefficient = trust_coefficient / lr if lr > 0 else math.inf
        return {
            "coefficient": trust_coefficient,
            "weight_decay": weight_decay if self.denominator == "split" else 0.0,
            "eps": self.eps,
            "at_most": 1.0 if self.clip else None,
        }

    def placed(self, lr: float) -> tuple[float, float]:
        """The rate inside the velocity and the one outside of it."""
        return (lr, 1.0) if self.lr_placement == "inside" else (1.0, lr)


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
    def is_fused(self) -> bool:
        """Whether the fused path has this form: the rest would need another kernel than torch's AdamW."""
        return (
            self.bias_correction
            and self.decay_placement == "inside"
            and self.max_grad_norm is None
            and self.grad_averaging
        )

    @property
    def ratio_options(self) -> dict[str, Any]:
        """Arguments of `trust_ratio` besides the norms."""
        return {"norm_bounds": self.norm_bounds, "at_most": 1.0 if self.trust_clip else None}


def fill_with_paper(groups: Sequence[dict[str, Any]], paper: LarsForm | LambForm) -> None:
    """Give groups that were saved before an option existed the value that they were stepped with: the paper's."""
    for group in groups:
        for name, value in asdict(paper).items():
            group.setdefault(name, value)
