from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import largebatch.distributed.signals
from largebatch.distributed.signals import ECHO_S, StopRequest


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(largebatch.distributed.signals.time, "monotonic", lambda: now[0])
    return now


def test_the_first_signal_is_a_request_and_its_echo_is_not_another(clock: list[float]):
    with StopRequest() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        clock[0] += ECHO_S
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        assert stop.signal_name == "SIGTERM"


@pytest.mark.fault(9)
@pytest.mark.parametrize(("second", "after_s"), [("SIGTERM", ECHO_S + 0.1), ("SIGINT", 0.0)])
def test_a_second_request_interrupts_at_once(second: str, after_s: float, clock: list[float]):
    with StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        clock[0] += after_s
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), getattr(signal, second))


CHILD = """
import time
from largebatch.distributed.signals import end_with_launcher
end_with_launcher()
print("up", flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
input()
"""


@pytest.mark.fault(13)
@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
@pytest.mark.parametrize(("variables", "survives"), [({"TORCHELASTIC_RUN_ID": "1"}, False), ({}, True)])
def test_a_rank_ends_with_its_torchrun_and_with_no_other_parent(variables: dict[str, str], survives: bool):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=kept | variables, **pipes)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    end = time.monotonic() + (1.0 if survives else 10.0)
    while _lives(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert _lives(child) == survives
    if survives:
        os.kill(child, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
