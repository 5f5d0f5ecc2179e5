"""What a rank of the pool in `pool.py` does: it reads tasks from its pipe and answers each.

Messages are pickled dicts of plain values.
"""

from __future__ import annotations

import datetime
import faulthandler
import functools
import gc
import importlib
import importlib.util
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from largebatch.distributed.signals import end_with_starter

GROUP_TIMEOUT = datetime.timedelta(seconds=60)


def serve(connection: Connection, log: Path) -> None:
    """Answer tasks until the pipe is closed; output goes to `log`."""
    _become_rank(log)
    start = _State()
    reply = {"result": b"", "error": "", "group_usable": True}
    while True:
        connection.send_bytes(pickle.dumps(reply))
        if reply["error"]:
            # The others may wait for this rank in a collective: closed connections tell them at once. After the reply,
            # so that the cause is heard before what follows from it.
            _leave_group()
        try:
            task = pickle.loads(connection.recv_bytes())
        except EOFError:
            os._exit(0)
        reply = _answer(task, start)


def _become_rank(log: Path) -> None:
    """A process group of its own, for its children; output to `log`; draws of its own; no life without its parent."""
    import numpy as np

    os.setpgid(0, 0)
    end_with_starter()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    np.random.seed()  # noqa: NPY002  Python's own generator does so by itself
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)


def _answer(task: dict[str, Any], start: _State) -> dict[str, Any]:
    import torch.distributed as dist

    result, error = b"", ""
    try:
        start.restore()
        _begin_afresh(task)
        _join_group(task)
        function = _load(task["module"], task["file"], task["qualname"])
        args, kwargs = pickle.loads(task["arguments"])  # after the module: it may define their classes
        result = pickle.dumps(function(*args, **kwargs))
    except BaseException as raised:  # SystemExit, too: a rank that leaves is a failure
        error = traceback.format_exc()
        traceback.clear_frames(raised.__traceback__)  # they may hold the process group
    group_usable = not error and dist.is_initialized() == (task["world_size"] > 1)
    return {"result": result, "error": error, "group_usable": group_usable}


class _State:
    """What a function may change of its process: each task begins with that of the rank's start, as a fork would."""

    def __init__(self) -> None:
        self._folder, self._environment, self._umask = os.getcwd(), dict(os.environ), _umask()
        self._arguments, self._path = [*sys.argv], [*sys.path]
        self._output = sys.stdin, sys.stdout, sys.stderr
        self._handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}

    def restore(self) -> None:
        os.chdir(self._folder)
        os.environ.clear()
        os.environ.update(self._environment)
        os.umask(self._umask)
        sys.argv[:], sys.path[:] = self._arguments, self._path
        sys.stdin, sys.stdout, sys.stderr = self._output
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _begin_afresh(task: dict[str, Any]) -> None:
    """The environment of a launched rank; what an earlier call left behind in torch and accelerate is undone."""
    import torch

    rank, world_size = str(task["rank"]), str(task["world_size"])
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world_size, LOCAL_WORLD_SIZE=world_size)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # unused: the group is there already
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.manual_seed(0)
    if accelerate_state := sys.modules.get("accelerate.state"):
        accelerate_state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate_state.GradientState._reset_state()


def _join_group(task: dict[str, Any]) -> None:
    import torch.distributed as dist

    if task["new_group"] or task["world_size"] == 1:
        _leave_group()
    if task["world_size"] > 1 and not dist.is_initialized():
        dist.init_process_group(
            "gloo",
            init_method=f"file://{task['group_file']}",
            rank=task["rank"],
            world_size=task["world_size"],
            timeout=GROUP_TIMEOUT,
        )


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()  # connections close with the last reference to the group, which a DDP model may hold


def _load(module_name: str, file: str | None, qualname: str) -> Callable[..., Any]:
    """The function, from its module by name; by file where the name means nothing or another module here."""
    module: ModuleType | None
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError:
        module = None
    if file is not None and (module is None or not _is_file_of(module, file)):
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None, file
        assert spec.loader is not None, file
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    if module is None:
        raise ModuleNotFoundError(f"No module {module_name!r} on {sys.path}.")
    return functools.reduce(getattr, qualname.split("."), module)  # type: ignore[return-value]


def _is_file_of(module: ModuleType, file: str) -> bool:
    return module.__file__ is not None and Path(module.__file__).resolve() == Path(file).resolve()
