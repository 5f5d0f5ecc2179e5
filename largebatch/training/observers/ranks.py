"""Whether all ranks are at the same step with the same weights: found within k steps, and the rank named."""

from __future__ import annotations

import torch

from largebatch.distributed.checksums import combine_checksums, parameter_checksums
from largebatch.distributed.gather import Disagreement, disagreement, gather_ints
from largebatch.distributed.sending import sent
from largebatch.training.loop import Observer, Run
from largebatch.training.step_report import StepReport


class RankObserver(Observer):
    """Compares step and weights over ranks at the start, every `every` steps, and before each checkpoint.

    Torch goes on when ranks have different weights: it averages gradients that belong to different models. All ranks
    read the same table of checksums, so all of them stop with the same error. Put it before the observer of
    checkpoints: then none is written of weights that the ranks do not share. Buffers, such as running statistics of
    batch norm, are a rank's own until they are merged, and optimizer states show in the weights a step later.

    It costs a pass over the weights on the device and an all-reduce of 24 bytes per rank.

    Args:
        every: steps between comparisons; None: only at the start.
        checkpoint_every: samples between checkpoints; None: only at the end.
    """

    def __init__(self, *, every: int | None, checkpoint_every: int | None = None) -> None:
        self._every = every
        self._checkpoint_every = checkpoint_every
        self._agreed_at: int | None = None

    def on_start(self, run: Run) -> None:
        """Compare what the ranks start from: a fresh model, or a checkpoint that each of them has read."""
        self.compare(run)

    def after_step(self, run: Run, report: StepReport) -> None:
        """Compare, if this step is due."""
        if self._every is None:
            return
        if report.taken.crosses(self._checkpoint_every) or report.saves_here or report.taken.is_due(self._every):
            self.compare(run)

    def on_end(self, run: Run, status: str) -> None:
        """Compare the final weights before they are saved, unless they are not numbers any more."""
        if self._every is not None and status != "diverged" and self._agreed_at != run.progress.step:
            self.compare(run)

    def compare(self, run: Run) -> None:
        """Compare now. Every rank calls it.

        Raises:
            RuntimeError: on every rank, if ranks are at different steps or have different weights; names the rank.
        """
        if run.runtime.world_size == 1:
            return
        progress, checksums = run.progress, parameter_checksums(run.module)
        position = sent(torch.tensor([progress.step, progress.samples_seen]), run.runtime.device)
        table = gather_ints(run.runtime, torch.cat([position, combine_checksums(checksums).reshape(1)])).tolist()
        for column, what in enumerate(("steps done", "samples seen")):
            if found := disagreement([row[column] for row in table]):
                raise RuntimeError(self._explain(found, what, "A rank skipped or repeated a step."))
        if disagreement([row[2] for row in table]):
            raise RuntimeError(self._different_weights(run, checksums))
        self._agreed_at = progress.step

    def _different_weights(self, run: Run, checksums: torch.Tensor) -> str:
        """Every rank has seen that the weights differ, so all of them come here."""
        columns = gather_ints(run.runtime, checksums).T.tolist()
        names = [name for name, _ in run.module.named_parameters()]
        pairs = [(name, disagreement(_hex(column))) for name, column in zip(names, columns, strict=True)]
        found = [(name, one) for name, one in pairs if one]
        name, first = found[0]
        what = f"after step {run.progress.step}, checksum of {name}"
        return self._explain(first, what, f"{len(found)} of {len(names)} parameters differ.")

    def _explain(self, found: Disagreement, what: str, more: str) -> str:
        since = "at the start" if self._agreed_at is None else f"since step {self._agreed_at}, where they still agreed"
        return (
            f"Ranks disagree: {found.explain(what)}. {more} All ranks must be at the same step with the same weights; "
            f"{since}, gradients of different models may have been mixed, so nothing more is saved. Resume from the "
            f"last checkpoint; if rank {found.first_rank} differs again, look at its machine and at code that depends "
            "on the rank."
        )


def _hex(column: list[int]) -> list[str]:
    return [f"0x{value % 2**64:016x}" for value in column]
