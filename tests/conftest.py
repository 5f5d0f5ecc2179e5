from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.multiprocess.pool import RankPool, RankProcesses

# A script for a process of its own: looking for doctests in it would import JAX into this one.
collect_ignore = ["reference/optax_trajectories.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """How `-n 2` shares out the tests: by file, and all that need ranks to one worker, so that there is one pool."""
    for item in items:
        needs_ranks = "ranks" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ranks" if needs_ranks else item.nodeid.partition("::")[0]))


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
