"""Imported once, by the process whose forks are the workers of a study; see workers.py."""

from __future__ import annotations

import atexit
import gc
import os

import largebatch.study.trial  # noqa: F401

gc.freeze()  # what is there now is shared with the forks for as long as nobody walks through it
atexit.register(os._exit, 0)  # of this process alone: to take torch apart costs a second after the end of a study
