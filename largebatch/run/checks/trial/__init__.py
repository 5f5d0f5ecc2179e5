"""Tries a run before it starts: on the CPU, on every rank, on the same samples, before any process group."""

from largebatch.run.checks.trial.content import sampled_content
from largebatch.run.checks.trial.rehearsal import TriedRun, try_run
from largebatch.run.checks.trial.state import KeptState
from largebatch.run.checks.trial.topology import data_problems, state_problems

__all__ = ["KeptState", "TriedRun", "data_problems", "sampled_content", "state_problems", "try_run"]
