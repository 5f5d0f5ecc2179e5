from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path
    for path in [*(ROOT / "launch").iterdir(), ROOT / ".ci" / "run"]
    if (path.suffix in (".sh", ".sbatch") or path.name == "run") and path.is_file()
)
NAME = re.compile(r"[A-Za-z0-9_-]+")


def names(requirements: str) -> set[str]:
    lines = (line.split("#")[0].strip() for line in requirements.splitlines())
    return {match[0].lower() for line in lines if (match := NAME.match(line))}


def test_constraints_pin_exactly_the_direct_dependencies() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    required = {name.lower() for name in re.findall(r'"([A-Za-z0-9_-]+)(?:\[[^"]*\])?(?:>=[^"]*)?"', project)}
    constraints = (ROOT / "launch" / "constraints.txt").read_text()
    assert "torch" in required
    assert "mypy" in required
    alone = set(re.findall(r"--no-deps .* ([a-z0-9_]+)\)\n", (ROOT / "launch" / "setup_venv.sh").read_text()))
    assert alone == {"timm"}
    assert (required | alone) - {"largebatch"} == names(constraints)  # the project names itself in an extra
    assert all("==" in line for line in constraints.splitlines() if line and not line.startswith("#"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_executable_parses_and_begins_with_its_usage(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[1].startswith("# Usage: ")
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    found = subprocess.run(["shellcheck", "-x", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == ""


def test_the_old_name_of_a_variable_is_refused_with_the_new_one() -> None:
    environment = {"PATH": "/usr/bin:/bin", "JOIN_TIMEOUT": "60"}
    done = subprocess.run(
        [ROOT / "launch" / "multinode.sh", "2", "8", "node1:29400", "job"], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "JOIN_TIMEOUT=60: the variable is called RENDEZVOUS_TIMEOUT now." in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["torchrun.sh"],
        ["torchrun.sh", "0"],
        ["torchrun.sh", "batch.total=64"],
        ["accelerate.sh", "gpu"],
        ["multinode.sh", "2", "8", "node1:29400"],
        ["multinode.sh", "2", "8", "node1", "job"],
        ["multinode.sh", "2", "8", "node1:29400", "batch.total=64"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_print_the_usage_and_install_nothing(command: list[str], tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    done = subprocess.run(
        [ROOT / "launch" / command[0], *command[1:]],
        env={"PATH": "/usr/bin:/bin", "LARGEBATCH_VENV": str(venv)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"Usage: launch/{command[0]} ")
    assert not venv.exists()


def test_a_python_that_is_too_old_is_refused_with_the_remedy(tmp_path: Path) -> None:
    old = tmp_path / "old python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        [ROOT / "launch" / "setup_venv.sh"],
        env={"PATH": "/usr/bin:/bin", "LARGEBATCH_VENV": str(tmp_path / "venv"), "PYTHON": str(old)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs Python 3.10 or newer" in done.stderr
    assert str(old) in done.stderr


@pytest.fixture
def torchrun() -> ModuleType:
    """launch/bounded_torchrun.py"""
    spec = importlib.util.spec_from_file_location("bounded_torchrun", ROOT / "launch" / "bounded_torchrun.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_two_nodes(endpoint: str, conf: str) -> list[str]:
    return [
        "--nnodes",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        endpoint,
        "--rdzv-conf",
        conf,
        "-m",
        "nothing",
    ]


@pytest.fixture
def nowhere() -> str:
    """HOST:PORT that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.fault(55)
def test_a_node_whose_others_never_come_says_so_in_one_line(
    nowhere: str, torchrun: ModuleType, capsys: pytest.CaptureFixture[str]
):
    assert torchrun.run(of_two_nodes(nowhere, "join_timeout=1")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"largebatch: fewer than 2 nodes came to {nowhere} within 1 s. Start the missing nodes")


@pytest.mark.fault(55)
def test_a_node_that_does_not_reach_the_meeting_point_says_so_in_one_line(
    nowhere: str, torchrun: ModuleType, capsys: pytest.CaptureFixture[str]
):
    assert torchrun.run(of_two_nodes(nowhere, "join_timeout=1,read_timeout=1,is_host=false")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"largebatch: fewer than 2 nodes came to {nowhere}: after ")
    assert "this address does not answer from this node" in line


@pytest.mark.parametrize(
    ("cause", "calls"), [("timed out after 60000ms while trying to connect to (node1, 29400)", 2), ("reset by peer", 1)]
)
def test_only_a_node_that_comes_before_the_host_tries_again(
    cause: str,
    calls: int,
    torchrun: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    called = []

    def main(arguments: list[str]) -> None:
        called.append(arguments)
        if len(called) == 1:
            raise RendezvousConnectionError from RuntimeError(cause)

    monkeypatch.setattr(torchrun, "main", main)
    with socket.create_server(("127.0.0.1", 0)) as host:
        code = torchrun.run(of_two_nodes(f"127.0.0.1:{host.getsockname()[1]}", "join_timeout=9"))
    assert len(called) == calls
    assert code == (0 if calls == 2 else 2)
    assert ("any more" in capsys.readouterr().err) == (calls == 1)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A file that is there once torchrun has started its ranks; its answers to signals end with the test."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    former = {number: signal.getsignal(number) for number in numbers}
    start = SubprocessContext.start

    def start_and_tell(ranks: SubprocessContext) -> None:
        start(ranks)
        (tmp_path / "started").touch()

    monkeypatch.setattr(SubprocessContext, "start", start_and_tell)
    yield tmp_path / "started"
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("codes", "signals", "code"),
    [
        ((75, 74), True, 74), ((74, 75), True, 74), ((75, 75), True, 75), ((75, 1), True, 75), ((1, 1), True, 1),
        ((0, 0), True, 0), ((75, 74), False, 74), ((75, 75), False, 75), ((3, 1), False, 3),
    ],
)  # fmt: skip
def test_the_exit_code_is_that_of_the_ranks_and_74_of_any_comes_first(
    codes: tuple[int, int], signals: bool, code: int, torchrun: ModuleType, started: Path, tmp_path: Path
):
    """Real torchrun, signalled, or with a rank 0 that ends by itself: a job with 75 goes back into Slurm's queue."""
    strike = "kill -TERM $PPID" if signals else f"exit {codes[0]}"
    rank = f"""
        [ $LOCAL_RANK = 0 ] && code={codes[0]} || code={codes[1]}
        trap 'exit $code' TERM
        touch {tmp_path}/$LOCAL_RANK
        if [ $LOCAL_RANK = 0 ]; then
            until [ -e {started} ] && [ -e {tmp_path}/1 ]; do sleep 0.02; done
            {strike}
        fi
        while :; do sleep 0.02; done
    """
    assert torchrun.run(["--standalone", "--nproc-per-node", "2", "--no-python", "sh", "-c", rank]) == code


def test_torchrun_may_open_as_many_files_as_the_system_allows(
    torchrun: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []
    monkeypatch.setattr("resource.getrlimit", lambda which: (1024, 524288))
    monkeypatch.setattr("resource.setrlimit", lambda which, both: limits.append(both))
    torchrun.raise_open_files()
    assert limits == [(524288, 524288)]


@pytest.mark.fault(14)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
@pytest.mark.parametrize(("ranks", "is_stranded"), [("sleep 0 &", True), ("sleep 0 & sleep 60 &", False)])
def test_a_torchrun_that_does_not_notice_that_all_its_ranks_have_ended_is_found(
    ranks: str, is_stranded: bool, torchrun: ModuleType
):
    """As one does that waits for a host behind a link that was cut."""
    agent = subprocess.Popen(["sh", "-c", f"{ranks} exec sleep 60"], start_new_session=True)  # looks after no child
    limits = {"unnoticed_s": 0.2}
    found = threading.Thread(target=torchrun.wait_until_stranded, args=(agent.pid,), kwargs=limits, daemon=True)
    found.start()
    found.join(10 if is_stranded else 1)
    assert found.is_alive() != is_stranded
    os.killpg(agent.pid, signal.SIGKILL)
    agent.wait()
