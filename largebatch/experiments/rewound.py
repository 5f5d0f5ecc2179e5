"""Lets an experiment take steps of a run, and leaves no trace of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from largebatch.gradient.snapshots import rolled_back
from largebatch.run.initial_state import build_optimizer
from largebatch.run.prepare import Prepared
from largebatch.training.loop import Run
from largebatch.training.progress import Progress
from largebatch.training.steps import Steps


@contextmanager
def rewound(run: Run, prepared: Prepared, steps: Steps, *, on_host: bool = False) -> Iterator[Run]:
    """The run at its start, with other steps and a fresh optimizer; everything is rolled back at the end.

    One gradient serves all tests: a distributed wrapper takes its hooks once.

    Args:
        run: the one whose steps are taken.
        prepared: it was built from.
        steps: in place of its own.
        on_host: whether what is put back lies in the host's memory meanwhile, see `rolled_back`.
    """
    optimizer = build_optimizer(prepared.config, run.module)
    if run.scaled is not None:
        run.scaled.write(optimizer, 0)
    test = replace(run, steps=steps, optimizer=optimizer, progress=Progress())
    test.agreement.begin(test.progress)
    loss_scale = run.runtime.loss_scale_state()
    try:
        with rolled_back(test.module, test.optimizer, on_host=on_host):
            yield test
    finally:
        run.runtime.load_loss_scale_state(loss_scale)
