from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.forks import train_in_forks


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nothing happened to, on one rank."""
    folder = tmp_path_factory.mktemp("golden") / "run"
    ended = train_in_forks(folder)
    assert ended.codes == (0,), ended.output
    return folder


@pytest.fixture(scope="session")
def golden_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nothing happened to, on two ranks of one node."""
    folder = tmp_path_factory.mktemp("golden_of_two") / "run"
    ended = train_in_forks(folder, ranks=2)
    assert ended.codes == (0, 0), ended.output
    return folder
