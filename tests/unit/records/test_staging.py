"""The host memory that a checkpoint is copied into while the training goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import largebatch.records.checkpoint.staging as staged
from largebatch.records.checkpoint import Staging, load_checkpoint, save_checkpoint

FORMS = {
    "float32": torch.arange(60.0).reshape(3, 4, 5),
    "other strides": torch.arange(60.0).reshape(3, 4, 5).transpose(0, 2),
    "part of another": torch.arange(60.0)[7:11],
    "bfloat16": torch.arange(7.0).bfloat16(),
    "number": torch.tensor(2.5, dtype=torch.float64),
    "conjugated": torch.tensor([1 + 2j, 3j]).conj(),
    "bool": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 3),
}


def same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return ours.keys() == expected.keys() and all(
        ours[name].dtype == one.dtype and torch.equal(ours[name], one) for name, one in expected.items()
    )


@pytest.mark.parametrize("block", [1, 100, 2**28])
def test_copies_are_whole_whatever_the_memory_is_cut_into(block: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(staged, "_BLOCK_BYTES", block)
    tensors = {"model": FORMS, "tied": {"a": FORMS["float32"], "b": FORMS["float32"]}}
    copies, wait = Staging().copy(tensors)
    wait()
    assert copies.keys() == tensors.keys()
    assert all(same(copies[group], tensors[group]) for group in tensors)
    saved = save_checkpoint(tmp_path, step=1, tensors=copies, values={}, keep=1)
    assert all(same(load_checkpoint(saved).tensors[group], tensors[group]) for group in tensors)


def test_a_second_copy_needs_no_memory_and_no_original_is_shared():
    staging, value = Staging(), torch.ones(1000)
    first, _ = staging.copy({"model": {"a": value, "b": torch.zeros(3)}})
    address = first["model"]["a"].data_ptr()
    value += 1
    assert float(first["model"]["a"].sum()) == 1000
    second, _ = staging.copy({"model": {"a": value, "b": torch.zeros(3)}})
    assert second["model"]["a"].data_ptr() == address
    assert float(second["model"]["a"].sum()) == 2000


def test_tensors_that_came_later_or_changed_their_form_are_copied():
    """An optimizer has no state before its first step."""
    staging = Staging()
    staging.copy({"model": {"a": torch.ones(4)}})
    later = {"model": {"a": torch.ones(2, 4)}, "optimizer": {"a/exp_avg": torch.full((4,), 3.0)}}
    copies, _ = staging.copy(later)
    assert all(same(copies[group], later[group]) for group in later)


def test_blocks_are_filled_and_none_is_larger_than_its_tensors():
    sizes = [staged._BLOCK_BYTES // 4 + 1, *[staged._BLOCK_BYTES // 4] * 5, 0, 3]
    counts = [len(block) for block in staged._blocks(sizes, pinned=False)]
    assert counts == [3, 5]  # the first three leave less room than the fourth needs
