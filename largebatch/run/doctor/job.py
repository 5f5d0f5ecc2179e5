"""The launcher's environment, ports, and whether two processes really meet."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Iterator, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from largebatch.distributed.launcher_environment import launcher_problems
from largebatch.run.doctor.diagnosis import Diagnosis

MEETING_S = 60.0  # two fresh processes import torch first: seconds on a busy machine


def launcher(environ: Mapping[str, str], *, precision: str = "fp32") -> Iterator[Diagnosis]:
    """What torchrun, accelerate launch, Slurm or nobody has set."""
    started = {name: environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in environ}
    problems = launcher_problems(environ, precision=precision, num_processes=None)
    for problem in problems:
        fact, _, remedy = problem.rpartition(". ")  # fact and rule, then the remedy as its last sentence
        yield Diagnosis("launcher", "problem", fact or problem, remedy)
    if not problems:
        told = ", ".join(f"{name}={value}" for name, value in started.items()) or "none: one process"
        yield Diagnosis("launcher", "ok", told)
    if "SLURM_JOB_ID" in environ and not started:
        found = f"job {environ['SLURM_JOB_ID']} of Slurm, but no launcher in it: every task would train by itself"
        yield Diagnosis("Slurm", "note", found, "srun torchrun ..., as launch/slurm.sbatch does")


def ports(environ: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Whether this machine may listen, and whether the job's port is free where rank 0 is to open it."""
    try:
        with socket.create_server(("127.0.0.1", 0)):
            pass
    except OSError as error:
        remedy = "allow sockets on 127.0.0.1: look at the firewall or the sandbox"
        yield Diagnosis("loopback", "problem", f"no socket on 127.0.0.1: {error.strerror}", remedy)
        return
    yield Diagnosis("loopback", "ok", "this machine can listen on 127.0.0.1")
    address, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT", "")
    if address:
        yield _address(address)
    if address and port.isdecimal() and environ.get("RANK") == "0" and environ.get("TORCHELASTIC_RUN_ID") is None:
        yield _port(int(port))


def _address(address: str) -> Diagnosis:
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(address, None)}
    except OSError as error:
        remedy = "give the IP address of the first node, or its name as every node resolves it"
        return Diagnosis("MASTER_ADDR", "problem", f"{address} has no address here: {error.strerror or error}", remedy)
    return Diagnosis("MASTER_ADDR", "ok", f"{address} is {', '.join(sorted(map(str, found)))}")


def _port(port: int) -> Diagnosis:
    """Rank 0 opens it itself where no agent has done so."""
    try:
        with socket.create_server(("", port)):
            return Diagnosis("MASTER_PORT", "ok", f"{port} is free")
    except (OSError, OverflowError) as error:
        remedy = "set MASTER_PORT to a free one, or use torchrun --standalone, which finds one"
        return Diagnosis("MASTER_PORT", "problem", f"{port} cannot be opened: {error}", remedy)


def meeting(limit_s: float = MEETING_S) -> Iterator[Diagnosis]:
    """Whether two processes of this machine can meet and add numbers up over gloo."""
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
    told = [answers.get(timeout=1) for process in processes if process.exitcode == 0]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    if told == [3.0, 3.0]:
        yield Diagnosis("two processes", "ok", "they meet, and 1 + 2 = 3 over gloo")
        return
    codes = [process.exitcode for process in processes]
    remedy = "set GLOO_SOCKET_IFNAME to the name of a network interface that works (`ip link`): lo within one machine"
    yield Diagnosis("two processes", "problem", f"no sum after {limit_s:.0f} s: {told}, exit codes {codes}", remedy)


def _meet(rank: int, port: int, limit_s: float, answers: multiprocessing.Queue[float]) -> None:
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0, timeout=timedelta(seconds=limit_s))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=limit_s))
    value = torch.tensor([rank + 1.0])
    dist.all_reduce(value)
    answers.put(value.item())
    dist.barrier()
    dist.destroy_process_group()
