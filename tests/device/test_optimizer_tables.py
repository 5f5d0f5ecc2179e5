"""Triton's kernels up to their launch: the tables of addresses are found again, and nothing is copied or waited for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.device.conftest import FakeGpus
from tests.device.run_record import RunRecord
from tests.device.training import train_and_count


def trained_to_the_launch(*overrides: str, steps: int = 8) -> tuple[RunRecord, Counter[str], int]:
    """A run whose kernels are counted instead of launched: the run, launches of a step, and tables of addresses.

    A fake tensor has no address: its storage and offset stand for it.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    from largebatch.optim.kernels import triton_steps, triton_tables

    address, launches = torch.Tensor.data_ptr, Counter[str]()

    def known_address(tensor: Any) -> int:
        if not isinstance(tensor, FakeTensor):
            return int(address(tensor))
        return int(tensor.untyped_storage()._cdata) + tensor.storage_offset() * tensor.element_size()

    def rates(work: Any, *_: Any) -> Any:
        launches["trust_rates"] += 1
        return torch.empty(work.num_tensors, dtype=torch.float64, device=work.device)

    torch.Tensor.data_ptr = known_address  # type: ignore[method-assign]
    triton_tables._is_plain = lambda row: True
    triton_steps._launch = lambda name, *_: launches.update([name])
    triton_steps._rates = rates
    run = train_and_count(["+optimizer.compile=true", *overrides], steps=steps, slow=False, folder=Path("runs"))
    return run, Counter({name: number // steps for name, number in launches.items()}), len(triton_tables._known)


@pytest.mark.parametrize(
    ("name", "launches"),
    [
        # Two groups; the one of biases and norms has no ratio.
        ("lars", {"lars_norms": 1, "trust_rates": 1, "lars_step": 2}),
        ("lamb", {"lamb_moments": 2, "trust_rates": 1, "lamb_step": 1}),
    ],
)
@pytest.mark.parametrize("batch", ["batch.max_micro=8", "batch.max_micro=2"], ids=["whole", "accumulated"])
def test_gradients_stay_where_they_are_so_that_no_step_makes_tables(
    fake_gpus: FakeGpus, name: str, launches: dict[str, int], batch: str
):
    pytest.importorskip("triton")
    run, found, num_tables = fake_gpus.call(trained_to_the_launch, f"optimizer={name}", batch)
    assert found == launches
    assert num_tables <= 4  # of a group: DDP lays its buckets anew once, after the first step
    for step in run.plain():
        assert step.waits == {}
        assert not [place for place in step.copies if "triton_tables" in place], step.copies
    assert run.problems == []
