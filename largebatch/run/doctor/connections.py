"""Checks the job's address and port, an all-reduce of two processes, and the W&B server."""

from __future__ import annotations

import multiprocessing
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from largebatch.records.trackers import PUBLIC_SERVER, key_source
from largebatch.run.doctor.finding import Finding

MEETING_S = 60.0  # two fresh processes import torch first: seconds on a busy machine
_CONNECT_S = 5.0


def ports(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the job's address resolves on this machine, and whether rank 0 can open its port."""
    address, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT", "")
    if not address:
        return
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(address, None)}
        yield Finding("MASTER_ADDR", "ok", f"{address} is {', '.join(sorted(found))}")
    except OSError as error:
        fact = f"{address} has no address here: {error.strerror or error}. Give the IP address of the first node, or "
        yield Finding("MASTER_ADDR", "problem", f"{fact}a name of it that every node resolves.")
    if not (port.isdecimal() and environ.get("RANK") == "0" and environ.get("TORCHELASTIC_RUN_ID") is None):
        return  # only rank 0 opens the port, and not if torchrun's agent has opened it
    try:
        with socket.create_server(("", int(port))):
            yield Finding("MASTER_PORT", "ok", f"{port} is free")
    except (OSError, OverflowError) as error:
        remedy = "Set MASTER_PORT to a free port, or use torchrun --standalone, which finds one."
        yield Finding("MASTER_PORT", "problem", f"{port} cannot be opened: {error}. {remedy}")


def flight_recorder(environ: Mapping[str, str]) -> Iterator[Finding]:
    """On a machine with GPUs: whether NCCL keeps what each rank sent last, and how to read it."""
    if not torch.cuda.is_available():
        return
    size = environ.get("TORCH_FR_BUFFER_SIZE", environ.get("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"))
    if size == "0" or environ.get("TORCH_NCCL_DUMP_ON_TIMEOUT") == "0":
        told = "off: a collective that hangs is not traced to its rank. Unset TORCH_FR_* and TORCH_NCCL_*."
        yield Finding("flight recorder", "note", told)
        return
    where = environ.get("TORCH_FR_DUMP_TEMP_FILE", "RUN/flight_recorder/rank_")
    folder, _, prefix = where.rpartition("/")
    read = f"torchfrtrace {folder or '.'} --prefix {prefix}"
    yield Finding("flight recorder", "ok", f"{size} collectives per rank; after a timeout `{read}` names the late rank")


def meeting(limit_s: float = MEETING_S) -> Iterator[Finding]:
    """Whether two processes of this machine can connect over loopback and all-reduce over gloo."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    arguments = [(rank, port, limit_s, answers) for rank in range(2)]
    processes = [context.Process(target=_meet, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(limit_s)
    sums = [answers.get(timeout=1) for process in processes if process.exitcode == 0]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    if sums == [3.0, 3.0]:
        yield Finding("two processes", "ok", "they meet, and 1 + 2 = 3 over gloo")
        return
    failed = f"no sum after {limit_s:.0f} s: {sums}, exit codes {[process.exitcode for process in processes]}. "
    remedy = "Set GLOO_SOCKET_IFNAME to the name of a network interface that works (`ip link`): lo within one machine."
    yield Finding("two processes", "problem", failed + remedy)


def _meet(rank: int, port: int, limit_s: float, answers: multiprocessing.Queue[float]) -> None:
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0, timeout=timedelta(seconds=limit_s))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=limit_s))
    value = torch.tensor([rank + 1.0])
    dist.all_reduce(value)
    answers.put(value.item())
    dist.barrier()
    dist.destroy_process_group()


def wandb_server(environ: Mapping[str, str], *, network: bool) -> Iterator[Finding]:
    """W&B's key, which is never printed, and its server, which is contacted only with `network`."""
    server = environ.get("WANDB_BASE_URL") or PUBLIC_SERVER
    parts, source = urlsplit(server), key_source(server)
    host = parts.hostname or "?"  # without the password that a URL may hold
    remedy = "Run `wandb login` or set WANDB_API_KEY; without a key runs are offline, and `wandb sync` uploads them."
    yield Finding("W&B key", "ok" if source else "note", f"in {source}" if source else f"none for {host}. {remedy}")
    if not network:
        yield Finding("W&B server", "ok", f"{host}, not contacted; --network does it")
        return
    started = time.perf_counter()
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        with socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_S):
            pass
    except (OSError, ValueError) as error:
        remedy = "Check the network, https_proxy and WANDB_BASE_URL; meanwhile use logger.wandb.mode=offline."
        yield Finding("W&B server", "problem", f"{host} does not answer: {error}. {remedy}")
    else:
        yield Finding("W&B server", "ok", f"{host} answers after {1000 * (time.perf_counter() - started):.0f} ms")
