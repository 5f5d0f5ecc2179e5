"""Memory of the host, and an early refusal of allocations that exceed it and would starve other processes."""

from __future__ import annotations

import os
from pathlib import Path

_GIB = 1 << 30


def machine_memory() -> int:
    """Bytes of memory of this machine, or the limit of its container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = container_limit()
    return total if limit is None else min(limit, total)


def container_limit() -> int | None:
    """Memory limit of the container in bytes; None without a limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() else None
    return None


def require_memory(what: str, num_bytes: int) -> None:
    """Raise ValueError, before anything is allocated, if `num_bytes` exceed the total memory of the host.

    It catches typos such as a width of 2^31. An allocation that passes may still not fit beside everything else.
    """
    total = machine_memory()
    if num_bytes > total:
        raise ValueError(
            f"{what} take {num_bytes / _GIB:,.1f} GiB, and this machine has {total / _GIB:,.1f} GiB of memory. "
            "Ask for less, or use a machine with more."
        )
