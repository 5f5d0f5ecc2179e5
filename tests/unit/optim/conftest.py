"""What the tests of the fast paths share."""

from __future__ import annotations

import pytest

from largebatch.optim.kernels import compiled, flat, fused_lamb


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 elements, rows of 3, scratch for two blocks and a bit, waves of 20: tensors cross all boundaries."""
    for module, name, value in (
        (flat, "SMALL_NUMEL", 4),
        (flat, "_ROW_NUMEL", 3),
        (fused_lamb, "BLOCK_NUMEL", 7),
        (fused_lamb, "SCRATCH_SHARE", 0.0),
        (fused_lamb, "LEAST_SCRATCH_NUMEL", 16),
        (compiled, "BLOCK_NUMEL", 7),
        (compiled, "WAVE_NUMEL", 20),
    ):
        monkeypatch.setattr(module, name, value)
