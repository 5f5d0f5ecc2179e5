"""Where our own objects stood that a config, or the identity of a checkpoint, may still name by their old place."""

from __future__ import annotations

from typing import Any

MOVED = {
    "largebatch.coupled_losses.InfoNCE": "largebatch.losses.InfoNCE",
    "largebatch.verification.planted.OddNet": "largebatch.experiments.verify.planted.OddNet",
}


def with_new_targets(node: Any) -> Any:
    """A config, or a part of it, in which each `_target_` of ours has its present name."""
    if isinstance(node, dict):
        return {
            key: MOVED.get(str(value), value) if key == "_target_" else with_new_targets(value)
            for key, value in node.items()
        }
    return [with_new_targets(one) for one in node] if isinstance(node, list) else node
