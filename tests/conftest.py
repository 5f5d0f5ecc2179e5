from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from _pytest.doctest import DoctestModule
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from tests.faults import shown
from tests.faults.table import FaultTable
from tests.launcher import LAUNCHER
from tests.multiprocess.pool import RankPool, RankProcesses
from tests.parsed_once import parse_yaml_once

FORKING = ("tests/faults/", "tests/end_to_end/test_leaving.py")
# What takes longest comes first, so that no worker is left with a file of minutes when the others have ended.
LONG = (
    "tests/multiprocess/", "tests/faults/", "tests/end_to_end/", "tests/device/", "tests/browser/", "tests/unit/optim/",
    "tests/unit/experiments/", "tests/unit/run/test_prepare", "tests/unit/training/test_guard",
)  # fmt: skip


class DoctestsWhereThereAreSome:
    """Modules without a doctest are not imported to look for one: some load JAX or Lightning, some train."""

    @pytest.hookimpl(wrapper=True)
    def pytest_collect_file(self, file_path: Path) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
        found = yield
        if found and ">>> " not in file_path.read_text(encoding="utf-8"):
            return [one for one in found if not isinstance(one, DoctestModule)]
        return found


def pytest_configure(config: pytest.Config) -> None:
    # A busy machine is slow, not wrong: hypothesis fails a test whose example takes 200 ms once, unless it is told so.
    settings.register_profile("whatever the load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("whatever the load")
    parse_yaml_once()
    config.pluginmanager.register(DoctestsWhereThereAreSome())
    config.pluginmanager.register(FaultTable(config.getoption("--write-fault-matrix")))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-fault-matrix", action="store_true", help="write the table of tests/faults/README.md anew")


def pytest_runtest_setup(item: pytest.Item) -> None:
    sys.modules.pop("mine", None)  # the module of a user in many tests, each in a folder of its own
    shown.begin(item.user_properties)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first."""
    items.sort(key=lambda item: next((at for at, one in enumerate(LONG) if item.nodeid.startswith(one)), len(LONG)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What has been imported by now stays: the garbage collector need not walk through a million objects again."""
    gc.freeze()


class OnePool(LoadFileScheduling):
    """Shares the test files out to the workers of `-n`, those that need the one pool of ranks to one of them.

    Likewise those that fork: there is one fork server. `xdist_group` marks and `--dist loadgroup` would say the same in
    public. But xdist 3.8 writes the group into `item._nodeid`, where pytest 9.2 no longer looks for it: tests of one
    group then run on several workers. `_split_scope` is xdist's own, hence the check of its version.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("tests/multiprocess/"):
            return "ranks"
        if nodeid.startswith(FORKING):
            return "forks"
        return super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OnePool:
    if not version("pytest-xdist").startswith("3.8."):
        told = "see whether `--dist loadgroup` with marks can take the place of OnePool in tests/conftest.py"
        warnings.warn(pytest.PytestConfigWarning(f"pytest-xdist {version('pytest-xdist')}: {told}."), stacklevel=1)
    return OnePool(config, log)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], RankPool]]:
    """`ranks(world_size).run(function, *args, **kwargs)`: a function's result in every rank of a world.

    Any test may use it; the processes behind it live as long as the session. See `tests/multiprocess/pool.py`.
    """
    processes = RankProcesses()

    def pool(world_size: int) -> RankPool:
        if world_size < 1:
            raise ValueError(f"world_size={world_size}: a world has at least one rank.")
        return RankPool(processes, world_size)

    yield pool
    processes.close()


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb called in this process as from a shell of one's own: in an empty folder, without a launcher."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["largebatch"])


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that nobody launched, on a machine without a GPU; what it becomes of itself is undone."""
    for name in LAUNCHER:
        # Set first: what accelerate writes into the environment is then undone as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
