"""Tries a run before it starts: on the CPU, on every rank, on the same samples, before any process group."""

from largebatch.trial.content import sampled_content
from largebatch.trial.rehearsal import TriedRun, try_run
from largebatch.trial.state import KeptState
from largebatch.trial.topology import data_problems, state_problems

__all__ = ["KeptState", "TriedRun", "data_problems", "sampled_content", "state_problems", "try_run"]
