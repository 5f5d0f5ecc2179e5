"""Torchrun, but nodes that do not meet, or lose each other, are one line and an end in time, and a signal is no error.

    python launch/bounded_torchrun.py --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT \
        --rdzv-conf join_timeout=300 --rdzv-id ID --nproc-per-node 8 -m largebatch train

All options are torchrun's. It ends with the exit code of the rank that ended first, with 74 where any rank says that
its last weights are not saved; torchrun alone makes 1 of each. A signal is handed on to the ranks. When they have ended
it ends, too, without a traceback: with their code, or, where they were killed before they had one, with 130 after
Ctrl-C and 75 after any other. Under `nohup` a SIGHUP is none.

`join_timeout` bounds the wait for the other nodes; exit code 2 after it. Torchrun alone gives up after `read_timeout`
(60 seconds) where HOST is the last to come; here that counts as waiting, too. And with torch 2.13 it waits for ever for
a HOST that the network has lost, ranks or no ranks: here it ends a minute after its last rank.
"""

from __future__ import annotations

import contextlib
import os
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

from largebatch.cli.process.leaving import EXIT_DONE, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_UNSAVED, code_of

_TORCHRUN_S = 600.0  # its own join_timeout
_UNNOTICED_S = 60.0
_HANDLED = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"  # torchrun's own


def run(arguments: Sequence[str]) -> int:
    """Call torchrun's main until the nodes have met; what it raises and is not about meeting goes on."""
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
            print(failed, file=sys.stderr)
            if EXIT_UNSAVED in (failure.exitcode for failure in failed.failures.values()):
                return EXIT_UNSAVED
            code = int(failed.get_first_failure()[1].exitcode)
            return code if code > 0 else 128 - code  # as a shell shows a signal
        except RendezvousTimeoutError:
            print(
                f"{who} within {limit_s:g} s. Start the missing ones with the same arguments, check that they reach "
                "this address, or wait longer: RENDEZVOUS_TIMEOUT.",
                file=sys.stderr,
            )
        except RendezvousConnectionError as error:
            is_early = "trying to connect" in str(error.__cause__)
            if is_early and _opens(options.rdzv_endpoint, started + limit_s):
                continue
            print(
                f"{who}: after {time.monotonic() - started:.0f} s it does not answer {'' if is_early else 'any more '}"
                "from this node. It is the address of one of them, as all others reach it, with a port that is free.",
                file=sys.stderr,
            )
        else:
            return 0
        return 2


def code_after_signal(codes: Sequence[int], signal_name: str) -> int:
    """The exit code of ranks that a signal was handed on to.

    A batch system puts a job that ends with 75 back into its queue: not one whose last weights are not saved, or that
    diverged in its last step. Where one rank has stopped, the errors of others are that they have lost it.

    Args:
        codes: of the ranks of this node; negative: ended by a signal, and without a code.
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
    """Holds the exit codes of this node's ranks once torchrun has ended them; after a signal it tells nobody."""
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
    """Return when all children of a process have ended, and it has not noticed for so many seconds.

    Torchrun looks after its ranks ten times a second, and waits for one after the other only to stop them all.
    """
    since = None
    while since is None or time.monotonic() - since < unnoticed_s:
        time.sleep(min(unnoticed_s / 10, 5.0))
        if {*_states_of_children(torchrun)} != {"Z"}:
            since = None
        elif since is None:
            since = time.monotonic()


def _states_of_children(parent: int) -> Iterator[str]:
    """Letters as in `ps`; none where there is no /proc."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, number = stat.read_text().rpartition(")")[2].split()[:2]
            if int(number) == parent:
                yield state


def _end_when_stranded(endpoint: str) -> None:
    wait_until_stranded(os.getpid(), unnoticed_s=_UNNOTICED_S)
    print(
        f"largebatch: all ranks of this node ended {_UNNOTICED_S:g} s ago, and torchrun still waits for {endpoint}, "
        "which does not answer: the network to it is gone. What the ranks said stands above.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _opens(endpoint: str, end: float) -> bool:
    """Whether HOST:PORT can be connected to before the time is over."""
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
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # torchrun would handle it nevertheless
        names = os.environ.get("PET_SIGNALS_TO_HANDLE", _HANDLED).split(",")
        os.environ["PET_SIGNALS_TO_HANDLE"] = ",".join(name for name in names if name != "SIGHUP")
    where = parse_args(sys.argv[1:]).rdzv_endpoint or "itself"
    threading.Thread(target=_end_when_stranded, args=(where,), daemon=True).start()
    sys.exit(run(sys.argv[1:]))
