"""How much memory there is, and the refusal of what could never be held in it: to try fills it for everybody."""

from __future__ import annotations

import os
from pathlib import Path

_GIB = 1 << 30


def machine_memory() -> int:
    """Bytes of memory that this machine has, or its container may take."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = container_limit()
    return total if limit is None else min(limit, total)


def container_limit() -> int | None:
    """Bytes of memory that the container may take; None: no limit is set."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() else None
    return None


def require_memory(what: str, num_bytes: int) -> None:
    """Raise ValueError, before anything is allocated, for what is larger than all the memory there is.

    It is for slips of the pen, as a width of 2^31: what passes may still not fit beside everything else.
    """
    total = machine_memory()
    if num_bytes > total:
        raise ValueError(
            f"{what} take {num_bytes / _GIB:,.1f} GiB, and this machine has {total / _GIB:,.1f} GiB of memory. "
            "Ask for less, or use a machine with more."
        )
