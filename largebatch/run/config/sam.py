"""Schema of the section `sam`."""

from __future__ import annotations

from typing import Literal

from largebatch.diagnostics.settings import PositiveFloat, PositiveInt, Section


class SamConfig(Section):
    """Sharpness-aware minimisation; none without `rho`."""

    rho: PositiveFloat | None
    m: Literal["micro", "global"] | PositiveInt
    adaptive: bool

    @property
    def is_global(self) -> bool:
        """Whether the ascent is by the gradient of the global batch."""
        return self.rho is not None and self.m == "global"

    def problems(self, micro: int | None) -> list[str]:
        """Settings without effect, or without a meaning of their own.

        Args:
            micro: the pinned micro-batch; None: it is not pinned.
        """
        if self.rho is None:
            changed = [f"sam.m={self.m}"] * (self.m != "micro") + ["sam.adaptive=true"] * self.adaptive
            return [f"{one}: has no effect without sam.rho. Give sam.rho=0.05, or remove it." for one in changed]
        if self.m == "global":
            return []
        if micro is None:
            size = self.m if isinstance(self.m, int) else 32
            return [
                f"sam.m={self.m}: each micro-batch climbs by its own gradient, so its size changes the result, and it "
                f"depends on memory and ranks. Pin it with batch.micro={size}, or use sam.m=global."
            ]
        if isinstance(self.m, int) and self.m != micro:
            return [
                f"sam.m={self.m}: the samples of one ascent are a micro-batch, and batch.micro={micro}. Give both the "
                "same number."
            ]
        return []
