from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.multiprocess.pool import RankPool, RankProcesses

# A script for a process of its own: looking for doctests in it would import JAX into this one.
collect_ignore = ["reference/optax_trajectories.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """How `-n 2` shares out the tests: by file, and all that need ranks to one worker, so that there is one pool."""
    for item in items:
        needs_ranks = "ranks" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ranks" if needs_ranks else item.nodeid.partition("::")[0]))


class OnePool(LoadFileScheduling):
    """Shares the test files out to the workers of `-n`, those of tests/multiprocess to one: there is one pool of ranks.

    Not by `xdist_group` marks: xdist 3.8 loses them under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "ranks" if nodeid.startswith("tests/multiprocess/") else super()._split_scope(nodeid)


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
