from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.device.guard import built_guard, unavailable
from tests.device.run_record import RunRecord
from tests.device.training import train_and_count
from tests.launcher import LAUNCHER, LAUNCHER_PREFIXES

Result = TypeVar("Result")
ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120  # of a call; 50 times what it takes


class FakeGpus:
    """Calls functions in forks of a process in which torch believes in GPUs; see the README beside this file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        self._said: dict[Any, list[list[Any]]] = {}  # by rank 0 of a run
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in LAUNCHER and not name.startswith(LAUNCHER_PREFIXES)
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.device.server", str(built_guard())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._printed, cwd=ROOT,
            env=environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def call(
        self, function: Callable[..., Result], *args: Any, rank: int = 0, world_size: int = 8, **kwargs: Any
    ) -> Result:
        """The result of a function at the top level of a file, called as `rank` of `world_size` on fake GPUs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        request = {"function": function, "args": args, "kwargs": kwargs, "rank": rank, "world_size": world_size}
        try:
            pickle.dump(request | {"folder": folder}, self._process.stdin)
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], LIMIT_S)[0]:
                raise TimeoutError(f"no answer for {LIMIT_S} s")
            done, value = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            self.close()
            done, value = False, f"{type(error).__name__}: {error}"
        if not done:
            self._printed.seek(0)
            pytest.fail(f"{value}\nprinted: {self._printed.read()[-3000:].decode(errors='replace')}", pytrace=False)
        return value  # type: ignore[no-any-return]

    def train(
        self,
        *overrides: str,
        rank: int = 0,
        world_size: int = 8,
        steps: int = 7,
        slow: bool = False,
        kernel_s: float | None = None,
    ) -> RunRecord:
        """What `steps` steps of `largebatch train OVERRIDES` do on `rank` of `world_size`; see `train_and_count`."""
        how: Any = {
            "world_size": world_size,
            "steps": steps,
            "slow": slow,
            "kernel_s": kernel_s,
            "folder": Path("runs"),
        }
        key = overrides, world_size, steps, slow
        if rank and key not in self._said:
            self.train(*overrides, world_size=world_size, steps=steps, slow=slow)
        run = self.call(train_and_count, overrides, rank=rank, heard=self._said[key] if rank else (), **how)
        if not rank:
            self._said[key] = run.said
        return run

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="session")
def fake_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGpus]:
    """Fake GPUs for this session; skips where no guard can be built."""
    if reason := unavailable():
        pytest.skip(reason)
    gpus = FakeGpus(tmp_path_factory.mktemp("device"))
    yield gpus
    gpus.close()
