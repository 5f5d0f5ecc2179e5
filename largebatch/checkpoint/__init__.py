"""Checkpoints: tensors as safetensors, everything else as JSON, a manifest over both. No pickle anywhere."""

from largebatch.checkpoint.background import BackgroundWriter, copied
from largebatch.checkpoint.folder import Checkpoint, find_valid, load_checkpoint, newest_valid, save_checkpoint
from largebatch.checkpoint.manifest import FORMAT, CheckpointError, saved_versions
from largebatch.checkpoint.optimizer_state import EXECUTION_OPTIONS, check_optimizer, pack_optimizer, unpack_optimizer
from largebatch.checkpoint.places import set_later_aside
from largebatch.checkpoint.writing import encode_values, require_storable

__all__ = [
    "EXECUTION_OPTIONS",
    "FORMAT",
    "BackgroundWriter",
    "Checkpoint",
    "CheckpointError",
    "check_optimizer",
    "copied",
    "encode_values",
    "find_valid",
    "load_checkpoint",
    "newest_valid",
    "pack_optimizer",
    "require_storable",
    "save_checkpoint",
    "saved_versions",
    "set_later_aside",
    "unpack_optimizer",
]
