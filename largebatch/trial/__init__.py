"""Tries a run before it starts: on the CPU, on every rank, on the same samples, before any process group."""

from largebatch.trial.content import sampled_content
from largebatch.trial.rehearsal import TriedRun, try_run

__all__ = ["TriedRun", "sampled_content", "try_run"]
