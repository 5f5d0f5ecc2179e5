from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.fork_server import ROOT
from tests.multiprocess.pool import RankError, RankPool

Ranks = Callable[[int], RankPool]


@dataclass
class Shifted:
    """Defined here, so that both sides have to find this very module."""

    tensor: torch.Tensor


def all_reduce(shifted: Shifted, *, scale: float) -> Shifted:
    tensor = scale * (shifted.tensor + dist.get_rank())
    dist.all_reduce(tensor)
    return Shifted(tensor)


def describe() -> dict[str, object]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return {
        "environment": [int(os.environ[name]) for name in names],
        "leaked": os.environ.get("LEAK"),
        "accelerate": [name for name in os.environ if name.startswith("ACCELERATE_")],
        "group": dist.is_initialized(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "process": (os.getcwd(), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, len(sys.argv), sys.stdout.name),
        "pid": os.getpid(),
    }


def leak() -> None:
    os.environ["LEAK"] = "yes"
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    os.chdir("/")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.argv.append("leaked")
    sys.stdout = io.StringIO()


def raise_on_rank_1_while_rank_0_waits() -> None:
    if dist.get_rank() == 1:
        raise ZeroDivisionError("planted on one rank")
    dist.barrier()


def hang_on_rank_1_in_a_function_of_this_name() -> None:
    if dist.get_rank() == 1:
        time.sleep(1000)
    dist.barrier()


def exit_on_rank_1() -> None:
    if dist.get_rank() == 1:
        print("last words", flush=True)
        os._exit(0)


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_tensor_is_summed_over_all_ranks(ranks: Ranks, world_size: int) -> None:
    results = ranks(world_size).run(all_reduce, Shifted(torch.tensor([1.0, 10.0])), scale=2.0)
    total = sum(range(world_size))
    expected = torch.tensor([2.0 * (world_size + total), 2.0 * (10 * world_size + total)])
    assert len(results) == world_size
    assert all(torch.equal(result.tensor, expected) for result in results)


def test_a_function_is_found_by_name(ranks: Ranks) -> None:
    assert ranks(2).run("operator:add", 2, 3) == [5, 5]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_rank_has_the_environment_of_a_launched_process(
    ranks: Ranks, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for rank, found in enumerate(ranks(world_size).run(describe)):
        assert found["environment"] == [rank, world_size, rank, world_size]
        assert found["accelerate"] == []
        assert found["group"] == (world_size > 1)


def test_a_call_leaves_nothing_of_its_process_behind(ranks: Ranks) -> None:
    (before,) = ranks(1).run(describe)
    ranks(1).run(leak)
    (found,) = ranks(1).run(describe)
    assert found == before
    assert (found["leaked"], found["dtype"], found["threads"]) == (None, torch.float32, 1)


def test_an_exception_names_its_rank_and_line_and_the_same_processes_go_on(ranks: Ranks) -> None:
    before = [found["pid"] for found in ranks(2).run(describe)]
    with pytest.raises(RankError) as error:
        ranks(2).run(raise_on_rank_1_while_rank_0_waits)
    assert next(iter(error.value.failures)) == 1, "the cause comes first"
    message = str(error.value)
    assert "--- rank 1 ---" in message
    assert "ZeroDivisionError: planted on one rank" in message
    assert "in raise_on_rank_1_while_rank_0_waits" in message, "no traceback"
    assert [found["pid"] for found in ranks(2).run(describe)] == before, "rank 0 hung in its collective and was killed"
    assert ranks(2).run(all_reduce, Shifted(torch.zeros(1)), scale=1.0)[0].tensor == 1.0


def test_a_hanging_rank_meets_the_deadline_and_its_stack_is_shown(ranks: Ranks) -> None:
    ranks(2).run(describe)  # the processes are up
    start = time.monotonic()
    with pytest.raises(RankError, match=r"No answer within 3 s") as error:
        ranks(2).run(hang_on_rank_1_in_a_function_of_this_name, deadline=3)
    assert 3 <= time.monotonic() - start < 30
    assert "hang_on_rank_1_in_a_function_of_this_name" in error.value.failures[1]
    assert ranks(2).run(all_reduce, Shifted(torch.zeros(1)), scale=1.0)[1].tensor == 1.0


def test_a_rank_that_leaves_with_exit_code_0_is_a_failure(ranks: Ranks) -> None:
    with pytest.raises(RankError, match=r"left with exit code 0(.|\n)*last words") as error:
        ranks(2).run(exit_on_rank_1)
    assert list(error.value.failures) == [1]
    assert ranks(2).run("operator:add", 1, 1) == [2, 2]


def test_a_local_function_is_refused_before_any_rank_sees_it(ranks: Ranks) -> None:
    with pytest.raises(ValueError, match="move it to the top of"):
        ranks(2).run(lambda: None)


def wait_forever(ready: Path) -> None:
    ready.write_text(str(os.getpid()))
    time.sleep(1000)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's own")
def test_no_rank_survives_the_end_of_its_call_by_ctrl_c_nor_that_of_the_process_that_started_it(tmp_path: Path) -> None:
    script = f"""
        import contextlib, multiprocessing, pathlib, signal
        # Ignored by what a shell has started in the background, and inherited.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from tests.multiprocess.pool import RankPool, RankProcesses
        folder = pathlib.Path({str(tmp_path)!r})
        multiprocessing.set_forkserver_preload([])
        pool = RankPool(RankProcesses(folder), 1)
        for name in ("SIGINT", "SIGKILL"):
            with contextlib.suppress(KeyboardInterrupt):
                pool.run({f"{__name__}:{wait_forever.__name__}"!r}, folder / name, deadline=1000)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        for number in (signal.SIGINT, signal.SIGKILL):
            ready = tmp_path / number.name
            pid = _wait_for(lambda ready=ready: int(ready.read_text() or 0) if ready.exists() else 0, seconds=60)
            process.send_signal(number)
            assert pid, "the pool did not start"
            if not _wait_for(lambda pid=pid: not _is_alive(pid), seconds=10):
                os.kill(pid, signal.SIGKILL)
                process.kill()
                pytest.fail(f"rank {pid} outlived {number.name} to its parent")


def _wait_for(condition: Callable[[], int], *, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
