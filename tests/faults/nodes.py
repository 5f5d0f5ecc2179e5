"""Two machines and the cable between them, as network namespaces of this one.

    with linked_nodes() as nodes:
        ended = train_in_forks(tmp_path / "run", ranks=2, nodes=nodes)

A process that has entered a namespace sees that node's interfaces alone: its own loopback, and one end of the link.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

INTERFACE = "cable"  # what each node calls its end
_CLONE_NEWNET = 0x40000000  # linux/sched.h


@dataclass(frozen=True)
class Node:
    """One machine.

    Attributes:
        namespace: its name for `ip netns`.
        address: of its end of the link.
    """

    namespace: str
    address: str

    def enter(self) -> None:
        """Move this thread, and those that it will start, into the node."""
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
        with Path("/run/netns", self.namespace).open() as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")

    def plug_in(self) -> None:
        """Bring its end of the link up."""
        _ip("-n", self.namespace, "link", "set", "dev", INTERFACE, "up")


def why_not() -> str | None:
    """What is missing for nodes on this machine; None: nothing."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need Linux, root and the program ip"
    try:
        with linked_nodes():
            return None
    except subprocess.CalledProcessError as error:
        return f"this machine lets nobody make network namespaces: {error.stderr.strip()}"


@contextmanager
def linked_nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes whose link is up; both are gone afterwards, whatever happens, and the link with them."""
    name = f"largebatch-{secrets.token_hex(4)}"
    nodes = Node(f"{name}-0", "10.77.0.1"), Node(f"{name}-1", "10.77.0.2")
    try:
        for node in nodes:
            _ip("netns", "add", node.namespace)
        first, second = (node.namespace for node in nodes)
        # Neither end is ever in the namespace of the tests.
        _ip("-n", first, "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", second)
        for node in nodes:
            _ip("-n", node.namespace, "address", "add", f"{node.address}/30", "dev", INTERFACE)
            _ip("-n", node.namespace, "link", "set", "dev", "lo", "up")
            node.plug_in()
        yield nodes
    finally:
        for node in nodes:
            subprocess.run(["ip", "netns", "delete", node.namespace], stderr=subprocess.DEVNULL, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
