"""Prints wrong input once per machine; under torchrun as the last words of its report."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

from largebatch.cli.process.leaving import EXIT_DONE, EXIT_WRONG_INPUT
from largebatch.records.credentials import redacted
from largebatch.records.durable_files import write_whole

_HEAD_START_S = 3.0  # a launcher ends all ranks when the first one fails: the rank that tells must be the first
_OTHERS_S = 0.3  # until the other ranks wait
_KEPT: ContextVar[list[str] | None] = ContextVar("kept refusals", default=None)


def is_first_of_machine() -> bool:
    """Whether this process prints for all ranks of its machine."""
    rank = os.environ.get("LOCAL_RANK", "")
    return not rank.isdecimal() or int(rank) == 0


def print_once(message: str) -> None:
    """Print a message to stderr, on one process per machine."""
    if is_first_of_machine():
        print(f"largebatch: {message}", file=sys.stderr)


@contextlib.contextmanager
def kept_refusals() -> Iterator[list[str]]:
    """Inside, `refuse` adds its errors to the list in place of printing them, on every rank."""
    kept: list[str] = []
    token = _KEPT.set(kept)
    try:
        yield kept
    finally:
        _KEPT.reset(token)


def refuse(message: str, errors: Sequence[str] = ()) -> int:
    """Print wrong input once per machine; returns the exit code of this rank.

    Args:
        message: all of it.
        errors: the same, one by one; empty: it is one error.

    Under torchrun the message becomes the root cause of its report, which follows 20 lines of its own traceback. The
    other ranks wait until it ends them, and then have not failed: it would print a paragraph about each.
    """
    if (kept := _KEPT.get()) is not None:
        kept += errors or [message]
        return EXIT_WRONG_INPUT
    if not is_first_of_machine():
        try:
            time.sleep(_HEAD_START_S)
        except KeyboardInterrupt:  # SIGTERM, see `stop_at_once`
            return EXIT_DONE if "TORCHELASTIC_RUN_ID" in os.environ else EXIT_WRONG_INPUT
        return EXIT_WRONG_INPUT
    message = f"largebatch: {message}"
    if _tells_launcher(message):
        time.sleep(_OTHERS_S)
    else:
        print(message, file=sys.stderr)
    return EXIT_WRONG_INPUT


def _tells_launcher(message: str) -> bool:
    """Leave the message where torchrun's agent looks for the error of a failed rank; whether it could be left there."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    # As torch.distributed.elastic's ErrorHandler writes it.
    content = {"message": {"message": redacted(message), "extraInfo": {"timestamp": time.strftime("%s")}}}
    try:
        write_whole(path, json.dumps(content))
    except OSError:
        return False
    return True
