"""One rank's view of the job; what needs several ranks is in tests/multiprocess."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator

from largebatch.distributed.rendezvous import LauncherError
from largebatch.distributed.runtime import Runtime
from tests.launcher import LAUNCHER

pytestmark = pytest.mark.usefixtures("no_launcher")


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    opened = Runtime.open(precision="fp64")
    yield opened
    opened.close()


@pytest.mark.bad_input("a launcher that accelerate does not see")
def test_a_launcher_that_accelerate_does_not_see_is_refused_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    """Otherwise both processes would call themselves rank 0 and write the same files."""
    Accelerator(cpu=True)  # as a model file may do when it is imported: what it saw stays, process-wide
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        LauncherError, match=r"started 2 processes, but accelerate sees 1.*accelerate launch --multi_gpu"
    ):
        Runtime.open()
    monkeypatch.delenv("WORLD_SIZE")
    alone = Runtime.open(precision="bf16")  # accelerate refuses another precision while its old state is there
    assert (alone.rank, alone.world_size, alone.precision) == (0, 1, "bf16")
    alone.close()


def test_a_start_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # and nothing that says where the two would meet
    with pytest.raises(ValueError, match="MASTER_ADDR"):
        Runtime.open()
    for name in LAUNCHER:  # accelerate has set some of them
        monkeypatch.delenv(name, raising=False)
    alone = Runtime.open()
    assert alone.device.type == "cpu"
    alone.close()


@pytest.mark.bad_input("fp16 on a CPU")
def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="it would silently train in fp32"):
        Runtime.open(precision="fp16")


def test_double_precision_reaches_inputs_but_not_labels(runtime: Runtime):
    placed = runtime.place({"pixels": torch.zeros(2), "labels": torch.zeros(2, dtype=torch.int64)})
    assert isinstance(placed, dict)
    assert {name: value.dtype for name, value in placed.items()} == {"pixels": torch.float64, "labels": torch.int64}
    assert all(parameter.dtype == torch.float64 for parameter in runtime.wrap(torch.nn.Linear(2, 2)).parameters())


def test_outputs_under_autocast_are_copied_to_float32_unless_the_loss_does_it():
    def output(*, outputs_in_float32: bool, has_own_forward: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 2)
        if has_own_forward:  # a function of the instance, as wrappers of a forward leave it
            plain = model.forward
            model.forward = lambda inputs: plain(inputs)  # type: ignore[method-assign]
        return job.wrap(model, outputs_in_float32=outputs_in_float32)(torch.ones(1, 2))

    with Runtime.open(precision="bf16") as job:
        for has_own_forward in (False, True):
            wide = output(outputs_in_float32=True, has_own_forward=has_own_forward)
            as_computed = output(outputs_in_float32=False, has_own_forward=has_own_forward)
            assert (wide.dtype, as_computed.dtype) == (torch.float32, torch.bfloat16)
            assert torch.equal(wide, as_computed.float())


def test_a_key_decides_what_a_model_draws(runtime: Runtime):
    def draw(key: int) -> torch.Tensor:
        runtime.seed(key)
        return torch.rand(3)

    assert torch.equal(draw(2**64 - 1), draw(2**64 - 1))
    assert not torch.equal(draw(2**64 - 1), draw(2**63))


@pytest.mark.parametrize(("max_norm", "after"), [(None, 5.0), (1.0, 1.0), (7.0, 5.0)])
def test_the_norm_is_that_before_clipping(runtime: Runtime, max_norm: float | None, after: float):
    weights = [
        torch.nn.Parameter(torch.zeros(1)),
        torch.nn.Parameter(torch.zeros(1)),
        torch.nn.Parameter(torch.zeros(1)),
    ]
    weights[0].grad, weights[1].grad = torch.tensor([3.0]), torch.tensor([4.0])  # the third has none
    optimizer = torch.optim.SGD(weights, lr=1.0)
    assert float(runtime.grad_norm(optimizer, max_norm)) == 5.0
    assert float(torch.stack([weights[0].grad, weights[1].grad]).norm()) == pytest.approx(after, rel=1e-6)
