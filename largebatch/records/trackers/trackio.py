"""Trackio (Hugging Face) as a sink: runs in a local database, or in a Space; rows at `step = samples_seen`."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from largebatch.records.rows.row_file import Row
from largebatch.records.trackers.tracker import Problems, plain_values


class TrackioTracker:
    """One run of a Trackio project.

    Args:
        config: shown as the run's configuration. Give it unresolved, without secrets: it is stored as it is.
        project: name of the project.
        space_id: a Space of the Hugging Face hub; None: TRACKIO_SPACE_ID, else the database of this machine.
        name: of a new run; None: Trackio makes one up.
        run_name: of the run that is resumed. Rows that are trained again appear twice, at the same step.

    Attributes:
        run_ids: what a checkpoint keeps for a resume; empty if there is no Trackio run.
        show_command: opens the board of a run in the local database; None if there is none.

    Raises ImportError, with the command that installs it, if Trackio is missing.
    """

    def __init__(
        self,
        *,
        config: Mapping[str, Any],
        project: str = "largebatch",
        space_id: str | None = None,
        name: str | None = None,
        run_name: str | None = None,
    ) -> None:
        try:
            import trackio
        except ImportError as error:
            raise ImportError(
                f"The Trackio tracker needs the package trackio ({error}). Install it with `pip install trackio`, or "
                "leave this tracker out."
            ) from error
        self.run_ids: dict[str, str] = {}
        self.show_command: str | None = None
        self._problems = Problems("Trackio")
        self._run: Any = None
        self._samples_seen = 0
        plain = json.loads(json.dumps(dict(config), default=str))
        with self._problems.counted("no Trackio run; the records are in metrics.jsonl"):
            with contextlib.redirect_stdout(io.StringIO()):  # five lines of advice
                self._run = trackio.init(
                    project=project,
                    name=run_name or name,
                    space_id=space_id,
                    config=plain,
                    resume="allow" if run_name else "never",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
            self.run_ids = {"trackio_run_name": str(self._run.name)}
            is_local = not (space_id or os.environ.get("TRACKIO_SPACE_ID"))
            self.show_command = f"trackio show --project {project}" if is_local else None

    @property
    def problems(self) -> list[str]:
        """Losses, one line per kind of trouble."""
        return self._problems.lines()

    def log(self, row: Row) -> None:
        """Hand one row to Trackio's thread."""
        if self._run is None:
            return
        values = plain_values(row, self._problems)
        self._samples_seen = int(values.pop("samples_seen", self._samples_seen))
        if "step" in values:  # Trackio's own name for the x axis
            values["optimizer_step"] = values.pop("step")
        with self._problems.counted("a row was lost"):
            self._run.log(values, step=self._samples_seen)

    def finish(self, summary: dict[str, Any], plots: Sequence[Path]) -> None:
        """Log the summary's numbers and the pictures, and wait until all is stored."""
        if self._run is None:
            return
        run, self._run = self._run, None
        with contextlib.redirect_stdout(io.StringIO()):
            import trackio

            for plot in plots:
                with self._problems.counted("a plot was lost"):
                    run.log({f"plots/{plot.stem}": trackio.Image(str(plot))}, step=self._samples_seen)
            with self._problems.counted("the summary was lost"):
                numbers = {f"summary/{key}": value for key, value in summary.items() if isinstance(value, (int, float))}
                run.log(numbers, step=self._samples_seen)
            with self._problems.counted("not everything was stored"):
                trackio.finish()
