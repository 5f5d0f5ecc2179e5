"""Imported by the fork server alone, once: everything that forks need is then in memory."""

from __future__ import annotations

import gc
import os
import sys

import torch._dynamo
import torch.distributed.fsdp  # noqa: F401  by DDP and optimizers, when first used

from tests.faults.forked_rank import warm_up
from tests.parsed_once import parse_yaml_once

parse_yaml_once()
warm_up()
# A fork would have none of the others, and may wait for them.
assert sys.platform != "linux" or len(os.listdir("/proc/self/task")) == 1
gc.collect()
gc.freeze()  # what is there now is shared with the forks for as long as nobody walks through it
