"""Where metrics would go. Nothing is sent unless it is asked for, and a key is never shown."""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from largebatch.records.trackers import PUBLIC_SERVER, key_source
from largebatch.run.doctor.diagnosis import Diagnosis

_LIMIT_S = 5.0


def trackers(environ: Mapping[str, str] = os.environ, *, network: bool) -> Iterator[Diagnosis]:
    """W&B's key and server, TensorBoard.

    Args:
        environ: for WANDB_BASE_URL.
        network: open a connection to the server, and close it.
    """
    server = environ.get("WANDB_BASE_URL") or PUBLIC_SERVER
    source = key_source(server)
    if source is None:
        remedy = "`wandb login`, or WANDB_API_KEY; a run without is kept offline, and `wandb sync` uploads it"
        yield Diagnosis("W&B key", "note", f"none for {_host(server)}", remedy)
    else:
        yield Diagnosis("W&B key", "ok", f"in {source}")
    if network:
        yield _connection(server)
    else:
        yield Diagnosis("W&B server", "ok", f"{_host(server)}, not tried: --network does")
    if importlib.util.find_spec("tensorboard") is None:
        yield Diagnosis("TensorBoard", "note", "not installed", 'pip install "largebatch[tensorboard]"')
    else:
        yield Diagnosis("TensorBoard", "ok", "installed")


def _host(server: str) -> str:
    """Without what a URL may hold of a password."""
    return urlsplit(server).hostname or "?"


def _connection(server: str) -> Diagnosis:
    parts = urlsplit(server)
    started = time.perf_counter()
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        with socket.create_connection((parts.hostname or "", port), timeout=_LIMIT_S):
            pass
    except (OSError, ValueError) as error:
        remedy = "look at the network, https_proxy and WANDB_BASE_URL; meanwhile logger.wandb.mode=offline"
        return Diagnosis("W&B server", "problem", f"{_host(server)} does not answer: {error}", remedy)
    return Diagnosis(
        "W&B server", "ok", f"{_host(server)} answers after {1000 * (time.perf_counter() - started):.0f} ms"
    )
