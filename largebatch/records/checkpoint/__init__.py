"""Checkpoints: tensors as safetensors, everything else as JSON, a manifest over both. No pickle anywhere."""

from largebatch.records.checkpoint.background import BackgroundWriter
from largebatch.records.checkpoint.first_state import EXECUTION_OPTIONS
from largebatch.records.checkpoint.folder import is_on_disk, save_checkpoint
from largebatch.records.checkpoint.loading import (
    Checkpoint,
    Fits,
    find_valid,
    load_checkpoint,
    newest_valid,
    position_of,
    verify_checkpoint,
)
from largebatch.records.checkpoint.manifest import FORMAT, CheckpointError, saved_versions
from largebatch.records.checkpoint.optimizer_state import pack_optimizer, unpack_optimizer
from largebatch.records.checkpoint.run_fit import Soundness, require_model_fit, require_run_fit, unsound_weights
from largebatch.records.checkpoint.run_values import require_run_values
from largebatch.records.checkpoint.sharing import chosen_by_rank0, load_weights
from largebatch.records.checkpoint.staging import Staging
from largebatch.records.checkpoint.step_folders import set_later_aside, why_absent
from largebatch.records.checkpoint.writing import NotSavedError, encode_values, require_storable

__all__ = [
    "EXECUTION_OPTIONS",
    "FORMAT",
    "BackgroundWriter",
    "Checkpoint",
    "CheckpointError",
    "Fits",
    "NotSavedError",
    "Soundness",
    "Staging",
    "chosen_by_rank0",
    "encode_values",
    "find_valid",
    "is_on_disk",
    "load_checkpoint",
    "load_weights",
    "newest_valid",
    "pack_optimizer",
    "position_of",
    "require_model_fit",
    "require_run_fit",
    "require_run_values",
    "require_storable",
    "save_checkpoint",
    "saved_versions",
    "set_later_aside",
    "unpack_optimizer",
    "unsound_weights",
    "verify_checkpoint",
    "why_absent",
]
