"""Imported once, by the process whose forks are the workers of a study; see workers.py."""

from __future__ import annotations

import atexit
import gc
import os
import sys

import largebatch.study.trial  # noqa: F401

# In the fork server alone: whoever else imports this module must keep its exit code.
if any("multiprocessing.forkserver" in argument for argument in sys.orig_argv):
    gc.freeze()  # what is there now is shared with the forks for as long as nobody walks through it
    atexit.register(os._exit, 0)  # to take torch apart costs a second after the end of a study
