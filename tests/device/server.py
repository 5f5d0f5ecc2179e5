"""The process that has loaded the guard and imported everything: it forks for each call, and sends back the result.

Reads pickled requests from its input, writes pickled answers to its output, and ends with its input.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any


def serve() -> None:
    """Answer calls until the input ends."""
    from tests.device.guard import load_guard

    load_guard(Path(sys.argv[1]))
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what runs print must not lie between the answers
    _warm_up()
    while True:
        try:
            call = pickle.load(requests)
        except EOFError:
            return
        pid = os.fork()
        if pid == 0:
            _answer(call, answers)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            pickle.dump((False, f"the fork ended with status {os.waitstatus_to_exitcode(status)}"), answers)
            answers.flush()


def _warm_up() -> None:
    """Import and train once: forks find warm caches."""
    import gc
    import tempfile

    import torch
    import torch.distributed.fsdp  # by DDP and optimizers, when first used

    from tests.device import machine
    from tests.device.fake_cuda import GPU
    from tests.device.training import train_and_count
    from tests.parsed_once import parse_yaml_once

    parse_yaml_once()
    torch.set_num_threads(1)
    machine.install()
    with tempfile.TemporaryDirectory() as folder:
        train_and_count(["batch.max_micro=32"], steps=2, slow=False, folder=Path(folder))
    gc.collect()
    GPU.take()
    gc.freeze()


def _answer(call: dict[str, Any], answers: Any) -> None:
    from tests.device.machine import launched_as

    try:
        launched_as(call["rank"], call["world_size"])
        os.chdir(call["folder"])
        answer = pickle.dumps((True, call["function"](*call["args"], **call["kwargs"])))
    except BaseException:
        from tests.device.fake_cuda import GPU

        answer = pickle.dumps((False, f"{traceback.format_exc()}\nproblems: {GPU.problems}"))
    answers.write(answer)
    answers.flush()


if __name__ == "__main__":
    serve()
