"""The dry run: tries a run before any process group, on one rank for all."""

from largebatch.run.checks.dry_run.content import sampled_content
from largebatch.run.checks.dry_run.rehearsal import Tried, UntriedRun, dry_run
from largebatch.run.checks.dry_run.state import KeptState
from largebatch.run.checks.dry_run.topology import data_problems, state_problems
from largebatch.run.checks.dry_run.training import fails_alone

__all__ = [
    "KeptState",
    "Tried",
    "UntriedRun",
    "data_problems",
    "dry_run",
    "fails_alone",
    "sampled_content",
    "state_problems",
]
