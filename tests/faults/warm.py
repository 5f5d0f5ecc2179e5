"""Imported by the fork server alone, once: everything that a run needs is then in memory, and a fork is ready."""

from tests.faults.forked_rank import warm_up

warm_up()
