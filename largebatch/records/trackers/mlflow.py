"""MLflow as a sink: one run of an experiment, rows at `step = samples_seen`.

One thread sends the rows in their order. MLflow's own asynchronous logging has ten, which trip over each other in a
folder. It waits for minutes at a server that is gone (7 retries of 120 s): less here unless its variables are set.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from largebatch.records.flat_config import flat
from largebatch.records.rows.row_file import Row
from largebatch.records.trackers.tracker import Problems, plain_values

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
_MOST_ON_THE_WAY = 100  # rows
_LONGEST_PARAM = 6_000  # characters of a value
_PARAMS_AT_ONCE = 100
_STATUS = {"finished": "FINISHED", "stopped": "KILLED"}


class MlflowTracker:
    """One MLflow run; metrics have `step = samples_seen`.

    Args:
        config: its values become params by their dotted keys. Give it unresolved, without secrets: it is stored as it
            is.
        experiment: name of the experiment; None: MLFLOW_EXPERIMENT_NAME, else largebatch.
        tracking_uri: server, database or folder; None: MLFLOW_TRACKING_URI, else MLflow's default.
        name: of the run.
        run_id: of the run that is resumed. Rows that are trained again appear twice, at the same step.

    Attributes:
        run_ids: what a checkpoint keeps for a resume; empty if there is no MLflow run.

    Raises ImportError, with the command that installs it, if MLflow is missing.
    """

    def __init__(
        self,
        *,
        config: Mapping[str, Any],
        experiment: str | None = None,
        tracking_uri: str | None = None,
        name: str | None = None,
        run_id: str | None = None,
    ) -> None:
        for variable, value in _PATIENCE.items():
            os.environ.setdefault(variable, value)
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ImportError(
                f"The MLflow tracker needs the package mlflow ({error}). Install it with `pip install mlflow`, or "
                "`pip install mlflow-skinny` for a server, or leave this tracker out."
            ) from error
        self.run_ids: dict[str, str] = {}
        self._problems = Problems("MLflow")
        self._client: Any = None
        self._thread = ThreadPoolExecutor(1, "mlflow")
        self._on_the_way: deque[Future[Any]] = deque()
        self._samples_seen = 0
        with self._problems.counted("no MLflow run; the records are in metrics.jsonl"):
            client = MlflowClient(tracking_uri=tracking_uri)
            experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "largebatch"
            self._run_id = self._open(client, experiment, name, run_id)
            self.run_ids = {"mlflow_run_id": self._run_id}
            self._client = client
            if run_id is None:  # params cannot change
                self._store(config)

    @property
    def problems(self) -> list[str]:
        """Losses, one line per kind of trouble."""
        return self._problems.lines()

    def log(self, row: Row) -> None:
        """Hand one row to the thread: its numbers are metrics, its texts are tags."""
        if self._client is None:
            return
        from mlflow.entities import Metric, RunTag

        values = plain_values(row, self._problems)
        self._samples_seen, now = (
            int(values.pop("samples_seen", self._samples_seen)),
            int(1000 * datetime.now(timezone.utc).timestamp()),
        )
        metrics = [
            Metric(key, float(value), now, self._samples_seen)
            for key, value in values.items()
            if not isinstance(value, str)
        ]
        tags = [RunTag(key, value[:_LONGEST_PARAM]) for key, value in values.items() if isinstance(value, str)]
        with self._problems.counted("a row was lost"):
            sent = self._thread.submit(self._client.log_batch, self._run_id, metrics=metrics, tags=tags)
            self._on_the_way.append(sent)
        while len(self._on_the_way) > _MOST_ON_THE_WAY:
            self._settle()

    def finish(self, summary: dict[str, Any], plots: Sequence[Path]) -> None:
        """Store the pictures and the summary, wait for the rows that are on their way, and end the run."""
        if self._client is None:
            return
        client, self._client = self._client, None
        while self._on_the_way:
            self._settle()
        for plot in plots:
            with self._problems.counted("a plot was lost"):
                client.log_artifact(self._run_id, str(plot), "plots")
        with self._problems.counted("the summary was lost"):
            client.log_text(self._run_id, json.dumps(summary, indent=2, default=str), "summary.json")
        with self._problems.counted("the run stays open"):
            self._thread.shutdown()
            client.set_terminated(self._run_id, _STATUS.get(str(summary.get("status")), "FAILED"))

    def _open(self, client: Any, experiment: str, name: str | None, run_id: str | None) -> str:
        if run_id is not None:
            client.update_run(run_id, status="RUNNING")
            return run_id
        found = client.get_experiment_by_name(experiment)
        number = client.create_experiment(experiment) if found is None else found.experiment_id
        return str(client.create_run(number, run_name=name).info.run_id)

    def _store(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in flat(config).items()]
        for first in range(0, len(params), _PARAMS_AT_ONCE):
            with self._problems.counted("a part of the configuration was lost"):
                self._client.log_batch(self._run_id, params=params[first : first + _PARAMS_AT_ONCE])

    def _settle(self) -> None:
        with self._problems.counted("a row was lost"):
            self._on_the_way.popleft().result()
