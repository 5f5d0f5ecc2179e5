"""Imported by the fork server alone, once: everything that a run needs is then in memory, and a fork is ready."""

import gc

from tests.faults.forked_rank import warm_up

warm_up()
gc.freeze()  # what is there now is shared with the forks for as long as nobody walks through it
