"""TensorBoard event files; the x axis is `samples_seen`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from largebatch.records.rows.row_file import Row
from largebatch.records.trackers.tracker import Problems, plain_values


class TensorBoardTracker:
    """Writes every number of a row as a scalar and every text as a text, at `global_step = samples_seen`.

    Args:
        folder: the folder of the event files, usually `RUN/tensorboard`.
        resume_at_samples: the `samples_seen` of the checkpoint that the run goes on from; TensorBoard then hides the
            later points of the attempts before. None hides nothing.

    Raises ImportError, with the command that installs it, if TensorBoard is missing.
    """

    def __init__(self, folder: str | Path, *, resume_at_samples: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"The TensorBoard tracker needs the package tensorboard ({error}). "
                'Install it with `pip install "largebatch[tensorboard]"`, or leave this tracker out.'
            ) from error
        self._problems = Problems("TensorBoard")
        self._writer: Any = None
        self._samples_seen = 0
        with self._problems.counted("no event file; the records are in metrics.jsonl"):
            # `purge_step` hides rows at that step too: the row of the checkpoint itself stays.
            purge_step = None if resume_at_samples is None else resume_at_samples + 1
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    @property
    def problems(self) -> list[str]:
        """Losses, one line per kind of trouble."""
        return self._problems.lines()

    def log(self, row: Row) -> None:
        """Queue one row; a thread of TensorBoard's writes it."""
        if self._writer is None:
            return
        values = plain_values(row, self._problems)
        with self._problems.counted("a row was lost, or a part of it"):
            self._samples_seen = int(values.pop("samples_seen", self._samples_seen))
            for key, value in values.items():
                add = self._writer.add_text if isinstance(value, str) else self._writer.add_scalar
                add(key, value, global_step=self._samples_seen)

    def finish(self, summary: dict[str, Any], plots: Sequence[Path]) -> None:
        """Store the summary as a text and the pictures as images, and close the file."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        for plot in plots:
            with self._problems.counted("a plot was lost"):
                from matplotlib.image import imread

                writer.add_image(f"plots/{plot.stem}", imread(plot), self._samples_seen, dataformats="HWC")
        with self._problems.counted("the summary was lost"):
            text = json.dumps(summary, indent=2, default=str)
            writer.add_text("summary", f"```json\n{text}\n```", self._samples_seen)
        with self._problems.counted("the event file could not be closed properly"):
            writer.close()
