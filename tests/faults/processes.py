"""Who is alive: processes are found by variables of the environment that they were started with."""

from __future__ import annotations

import contextlib
from pathlib import Path


def marked_processes(*variables: str) -> set[int]:
    """Process ids of this machine that were started with all of `variables`, each NAME=VALUE, and are alive.

    Forks have the variables of the process that they were forked from.
    """
    wanted = {variable.encode() for variable in variables}
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            # Gone meanwhile, or another user's. Of a zombie nothing can be read.
            with contextlib.suppress(OSError):
                if wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                    found.add(int(entry.name))
    return found


def parent_of(pid: int) -> int:
    """Its parent's process id; 0 for a process that has gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
