"""Torchrun with bounded waits, one-line errors for missing or lost nodes, and exit codes that survive a signal.

    python launch/bounded_torchrun.py --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT \
        --rdzv-conf join_timeout=300 --rdzv-id ID --nproc-per-node 8 -m largebatch train

All options are torchrun's.

Exit code: that of the first rank to end, or 74 if any rank could not save its last weights; torchrun alone turns each
into 1. A signal is passed on to the ranks. After they have ended, the exit code is theirs; if they were killed, it is
130 after Ctrl-C and 75 after any other signal. There is no traceback. Under `nohup` SIGHUP is ignored.

Waits: `join_timeout` bounds the wait for the other nodes, with exit code 2. Torchrun alone gives up after
`read_timeout` (60 seconds) if HOST is the last to start; here that time counts towards `join_timeout`. With torch 2.13,
torchrun waits forever for a HOST that the network has lost, even without ranks; here it ends a minute after its last
rank.

The limit of open files becomes the hard limit: torchrun holds the store of the job, with connections of all ranks.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError
from torch.distributed.run import main, parse_args

from largebatch.cli.process.leaving import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    EXIT_UNSAVED,
    EXIT_WRONG_INPUT,
    code_of,
)

_TORCHRUN_S = 600.0  # its own join_timeout
_UNNOTICED_S = 60.0
_HANDLED = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"  # torchrun's own


def run(arguments: Sequence[str]) -> int:
    """Call torchrun's main until the nodes have met; returns the exit code. Exceptions not about meeting propagate."""
    options = parse_args(list(arguments))
    conf = dict(part.partition("=")[::2] for part in options.rdzv_conf.split(",") if part)
    started, limit_s = time.monotonic(), float(conf.get("join_timeout", _TORCHRUN_S))
    who = f"largebatch: fewer than {options.nnodes} nodes came to {options.rdzv_endpoint}"
    while True:
        try:
            with _codes_of_ranks() as codes:
                main(list(arguments))
        except SignalException as stopped:
            return code_after_signal(codes, stopped.sigval.name)
        except ChildFailedError as failed:
            code = int(failed.get_first_failure()[1].exitcode)
            print(_message(failed) if code == EXIT_WRONG_INPUT else failed, file=sys.stderr)
            if EXIT_UNSAVED in (failure.exitcode for failure in failed.failures.values()):
                return EXIT_UNSAVED
            return code if code > 0 else 128 - code  # as a shell shows a signal
        except RendezvousTimeoutError:
            print(
                f"{who} within {limit_s:g} s. Start the missing nodes with the same arguments, check that they reach "
                "this address, or raise RENDEZVOUS_TIMEOUT.",
                file=sys.stderr,
            )
        except RendezvousConnectionError as error:
            is_early = "trying to connect" in str(error.__cause__)
            if is_early and _opens(options.rdzv_endpoint, started + limit_s):
                continue
            print(
                f"{who}: after {time.monotonic() - started:.0f} s this address does not answer "
                f"{'' if is_early else 'any more '}from this node. Give a name or address of one node that all others "
                "reach, and a free port.",
                file=sys.stderr,
            )
        else:
            return 0
        return 2


def _message(failed: ChildFailedError) -> Any:
    """What the first rank has left as its error, without torchrun's report around it."""
    message = failed.get_first_failure()[1].message
    return message["message"] if isinstance(message, dict) and "message" in message else failed


def code_after_signal(codes: Sequence[int], signal_name: str) -> int:
    """The exit code after a signal was passed on to the ranks.

    A batch system requeues a job that ends with 75. It must not requeue a job whose last weights are not saved, or that
    diverged in its last step. If one rank has stopped, other ranks fail only because they have lost it.

    Args:
        codes: of the ranks of this node; negative: killed by a signal, without a code.
        signal_name: such as SIGTERM.

    >>> [code_after_signal(codes, "SIGTERM") for codes in ([75, 74], [1, 1], [0, 0])]
    [74, 1, 0]
    >>> [code_after_signal(codes, "SIGTERM") for codes in ([75, 1], [0, -9], [])]
    [75, 75, 75]
    """
    if EXIT_UNSAVED in codes:
        return EXIT_UNSAVED
    stopped = code_of(signal_name)
    if not codes or not {EXIT_STOPPED, EXIT_INTERRUPTED}.isdisjoint(codes):
        return stopped
    return next((code for code in codes if code > 0), stopped if any(codes) else EXIT_DONE)


@contextlib.contextmanager
def _codes_of_ranks() -> Iterator[list[int]]:
    """Collects the exit codes of this node's ranks when torchrun ends them; after a signal torchrun drops them."""
    codes: list[int] = []
    close = SubprocessContext.close

    def close_and_note(ranks: SubprocessContext, *arguments: Any, **options: Any) -> None:
        close(ranks, *arguments, **options)
        ended = (handler.proc.poll() for handler in ranks.subprocess_handlers.values())
        codes[:] = [-signal.SIGKILL if code is None else code for code in ended]  # None: not even killed

    SubprocessContext.close = close_and_note  # type: ignore[method-assign]
    try:
        yield codes
    finally:
        SubprocessContext.close = close  # type: ignore[method-assign]


def wait_until_stranded(torchrun: int, *, unnoticed_s: float) -> None:
    """Return once all children of a process have ended and it has not reaped them for `unnoticed_s` seconds.

    Torchrun polls its ranks ten times a second, and waits for them one by one only when it stops all of them.
    """
    since = None
    while since is None or time.monotonic() - since < unnoticed_s:
        time.sleep(min(unnoticed_s / 10, 5.0))
        if {*_states_of_children(torchrun)} != {"Z"}:
            since = None
        elif since is None:
            since = time.monotonic()


def _states_of_children(parent: int) -> Iterator[str]:
    """Process states, letters as in `ps`; none without /proc."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, number = stat.read_text().rpartition(")")[2].split()[:2]
            if int(number) == parent:
                yield state


def _end_when_stranded(endpoint: str) -> None:
    wait_until_stranded(os.getpid(), unnoticed_s=_UNNOTICED_S)
    print(
        f"largebatch: all ranks of this node ended {_UNNOTICED_S:g} s ago, and torchrun still waits for {endpoint}, "
        "which does not answer: the network to it is gone. See the output of the ranks above.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def raise_open_files() -> None:
    """Allow as many open files as the system lets this user have: the store has three connections of each rank."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a system whose kernel allows fewer than its limit says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _opens(endpoint: str, end: float) -> bool:
    """Whether HOST:PORT accepts a connection before `end`."""
    while not (is_open := _is_open(endpoint)) and time.monotonic() < end:
        time.sleep(0.5)
    return is_open


def _is_open(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # torchrun would handle it all the same
        names = os.environ.get("PET_SIGNALS_TO_HANDLE", _HANDLED).split(",")
        os.environ["PET_SIGNALS_TO_HANDLE"] = ",".join(name for name in names if name != "SIGHUP")
    raise_open_files()
    where = parse_args(sys.argv[1:]).rdzv_endpoint or "itself"
    threading.Thread(target=_end_when_stranded, args=(where,), daemon=True).start()
    sys.exit(run(sys.argv[1:]))
