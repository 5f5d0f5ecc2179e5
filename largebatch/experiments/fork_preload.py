"""Imported once, by the process whose forks are the workers of a study; see study/workers.py.

Outside of `study`, whose import of torch takes seconds: this process must end with its parent during them, too.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys

from largebatch.distributed.signals import end_with_parent

# Whoever else imports this module must keep its exit code.
_IS_FORK_SERVER = any("multiprocessing.forkserver" in argument for argument in sys.orig_argv)
if _IS_FORK_SERVER:
    end_with_parent(os.getppid())

import largebatch.experiments.study.trial  # noqa: E402, F401

if _IS_FORK_SERVER:
    gc.freeze()  # shares the present objects with the forks: no collection touches them
    atexit.register(os._exit, 0)  # to take torch apart costs a second after the end of a study
