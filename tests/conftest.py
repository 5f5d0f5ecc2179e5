from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra.plugins.config_source import ConfigResult
from xdist.scheduler import LoadFileScheduling

from tests.faults import shown
from tests.faults.table import FaultTable
from tests.launcher import LAUNCHER
from tests.multiprocess.pool import RankPool, RankProcesses

FORKING = ("tests/faults/", "tests/end_to_end/test_leaving.py")
# What takes longest comes first, so that no worker is left with a file of minutes when the others have ended.
LONG = (
    "tests/multiprocess/", "tests/faults/", "tests/end_to_end/", "tests/browser/", "tests/unit/test_optim_",
    "tests/unit/test_chapter", "tests/unit/test_study", "tests/unit/test_prepare", "tests/unit/test_guard",
)  # fmt: skip
# Scripts for processes of their own: looking for doctests in them would import JAX into this one, and train.
collect_ignore = ["reference/optax_trajectories.py", "warm.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(FaultTable(config.getoption("--write-fault-matrix")))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-fault-matrix", action="store_true", help="write the table of tests/faults/README.md anew")


def pytest_runtest_setup(item: pytest.Item) -> None:
    shown.begin(item.user_properties)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """How `-n 2` shares out the tests: by file, and all that need ranks to one worker, so that there is one pool."""
    for item in items:
        needs_ranks = "ranks" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ranks" if needs_ranks else item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: next((at for at, one in enumerate(LONG) if item.nodeid.startswith(one)), len(LONG)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What has been imported by now stays: the garbage collector need not walk through a million objects again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _compose_once() -> Iterator[None]:
    """Hydra composes every command line twice, the first time to find `hydra.mode`, which conf/ leaves open.

    Without it, it goes by the flags, as it would in the end. And it parses two dozen files each time; here each one
    once, until it changes. Processes that tests start are left as they are.
    """
    find, load = Hydra.get_mode, FileConfigSource.load_config
    loaded: dict[tuple[str, str, int], ConfigResult] = {}

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        return find(self, config_name, overrides) if any("hydra.mode" in one for one in overrides) else None

    def load_config(self: FileConfigSource, config_path: str) -> ConfigResult:
        file = Path(self.path, config_path).with_suffix(".yaml")
        if not file.exists():
            return load(self, config_path)
        key = (self.path, config_path, file.stat().st_mtime_ns)
        if key not in loaded:
            loaded[key] = load(self, config_path)
        return copy.deepcopy(loaded[key])  # Hydra takes it apart

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Hydra, "get_mode", get_mode)
        patched.setattr(FileConfigSource, "load_config", load_config)
        yield


class OnePool(LoadFileScheduling):
    """Shares the test files out to the workers of `-n`, those that need the one pool of ranks to one of them.

    Likewise those that fork: there is one prepared interpreter.

    Not by `xdist_group` marks: xdist 3.8 loses them under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("tests/multiprocess/"):
            return "ranks"
        if nodeid.startswith(FORKING):
            return "forks"
        return super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OnePool:
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
