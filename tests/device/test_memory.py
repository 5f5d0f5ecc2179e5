"""Peak memory of a rank, in bytes of CUDA tensors, rounded as torch's allocator rounds them."""

from __future__ import annotations

import pytest

from tests.device.conftest import FakeGpus


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="the gradient is allocated anew beside DDP's buckets")
def test_accumulation_needs_no_more_memory_than_one_micro_batch(fake_gpus: FakeGpus):
    model = ["model=mlp", "model.hidden=[512,512]", "batch.max_micro=4"]
    one, four = (fake_gpus.train(*model, f"batch.total={total}").plain()[-1].peak for total in (32, 128))
    assert four <= one
