"""Peak memory of a rank, in bytes of CUDA tensors, rounded as torch's allocator rounds them."""

from __future__ import annotations

from tests.device.conftest import FakeGpus


def test_accumulation_needs_no_more_memory_than_one_micro_batch(fake_gpus: FakeGpus):
    model = ["model=mlp", "model.hidden=[512,512]", "batch.max_micro=4"]
    one, four = (
        max(step.peak for step in fake_gpus.train(*model, f"batch.total={total}").plain()) for total in (32, 128)
    )
    assert four <= one
