"""Weights & Biases as a sink: offline unless there is a key, never a prompt, never a reason to stop.

W&B may lose rows without a word (an offline run on a full disk, or killed before its buffer is written), so
metrics.jsonl is the record of truth and this is a copy for looking at. Measured with wandb 0.31: an offline start takes
about 2 s with the import, one `log` 0.3 to 0.7 ms.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from largebatch.records.rows.row_file import Row
from largebatch.records.trackers.tracker import Problems, plain_values
from largebatch.records.trackers.wandb_settings import (
    VARIABLES,
    identity,
    key_source,
    mode_of,
    provide_home,
    read_settings_files,
    server_of,
    settings,
)

_CONNECT_TIMEOUT_S = 3
_BEST = {"eval/val_accuracy": "max", "eval/val_loss": "min"}


class WandbTracker:
    """One W&B run; its x axis is `samples_seen`.

    Args:
        folder: the run folder; W&B makes the subfolder `wandb` itself.
        config: shown as the run's configuration. Give it unresolved, without secrets: it is stored as it is,
            but for values that JSON does not know, which are stored as texts.
        mode: "auto" is what WANDB_MODE or `wandb offline` says, else online if a key is found (`key_source`), else
            offline.
        defaults: by key of `wandb_settings.VARIABLES`: values where neither `given` nor W&B's variable has one.
        run_id: the id of the run that is resumed. Offline, W&B opens another folder with the same id; `wandb sync`
            joins them. Rows logged again after a resume appear twice, at the same `samples_seen`.
        artifacts: weights that become an artifact of type "model" at the end: of the "last" or the "best" checkpoint,
            or "none".
        given: `project`, `entity`, `name`, `group` (joins the runs of one study), `job_type`, `notes`, `tags`, `id`;
            None: the value of W&B's variable, else the default.

    An online start that fails (no key, no server within 15 s) becomes an offline run and a line in `problems`.

    Attributes:
        run_id: to be stored for a resume; None if there is no W&B run.
        mode: as it ended up: "online", "offline" or "disabled".
        sync_command: uploads later what stayed on this machine; None if nothing did.
        variables: those of W&B that named this run.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        config: Mapping[str, Any],
        mode: str = "auto",
        defaults: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        artifacts: str = "none",
        **given: Any,
    ) -> None:
        assert given.keys() <= VARIABLES.keys(), given.keys() - VARIABLES.keys()
        mode = mode_of(mode, os.environ)
        self.run_id = run_id
        self.mode = "disabled"
        self.sync_command: str | None = None
        self.variables: list[str] = []
        self._run: Any = None
        self._wandb: Any = None
        self._artifacts, self._folder = artifacts, Path(folder)
        self._run_folder = Path(folder)
        self._samples_seen: float | int | str = 0
        self._problems = Problems("W&B")
        if mode != "disabled":
            with self._problems.counted("no W&B run; the records are in metrics.jsonl"):
                Path(folder).mkdir(parents=True, exist_ok=True)  # or W&B writes to the folder for temporary files
                plain = json.loads(json.dumps(dict(config), default=str))
                provide_home(Path(folder))
                for name in VARIABLES.values():
                    if os.environ.get(name) == "":  # unset, to a shell; W&B ends with an error
                        del os.environ[name]
                self._wandb = importlib.import_module("wandb")
                files = read_settings_files(self._wandb)
                ours = {"project": "largebatch", "job_type": "train", "id": run_id, "dir": str(folder)}
                self._identity, self.variables = identity(given, ours | dict(defaults or {}), files, os.environ)
                self._identity["config"] = plain
                self._start(mode_of(mode, os.environ, files))

    @property
    def run_ids(self) -> dict[str, str]:
        """What a checkpoint keeps for a resume; empty if there is no W&B run."""
        return {} if self.run_id is None else {"wandb_run_id": self.run_id}

    @property
    def problems(self) -> list[str]:
        """Losses, one line per kind of trouble."""
        return self._problems.lines()

    def log(self, row: Row) -> None:
        """Hand one row to W&B, without a W&B step: a row with an old step would be dropped."""
        if self._run is None:
            return
        values = plain_values(row, self._problems)
        self._samples_seen = values.get("samples_seen", self._samples_seen)
        with self._problems.counted("a row was lost"):
            self._run.log(values)

    def show(self, figures: Mapping[str, Mapping[str, Any]], pages: Mapping[str, Path] | None = None) -> None:
        """Log figures of plotly (`data` and `layout`) and HTML pages that stand alone, by key; before `finish`."""
        if self._run is None:
            return
        for key, figure in figures.items():
            with self._problems.counted("a figure was lost"):
                from plotly.graph_objects import Figure

                drawn = Figure(data=figure["data"], layout=figure["layout"])
                self._run.log({"samples_seen": self._samples_seen, key: self._wandb.Plotly(drawn)})
        for key, page in (pages or {}).items():
            with self._problems.counted("a page was lost"):
                self._run.log({"samples_seen": self._samples_seen, key: self._wandb.Html(str(page), inject=False)})

    def finish(self, summary: dict[str, Any], plots: Sequence[Path]) -> None:
        """Store the summary and the pictures, then wait at most 60 s for uploads; what remains can be synced later.

        W&B's service may write its last block a moment later; the process does not end before it has.
        """
        if self._run is None:
            return
        run, self._run = self._run, None
        for plot in plots:
            with self._problems.counted("a plot was lost"):
                run.log({"samples_seen": self._samples_seen, f"plots/{plot.stem}": self._wandb.Image(str(plot))})
        for key, value in summary.items():
            if key in _BEST:  # its summary stays the best value; the last one is in the history
                continue
            with self._problems.counted("a summary value was lost"):
                run.summary[key] = value
        if (checkpoint := self._kept_checkpoint(summary)) is not None:
            with self._problems.counted("the weights were not uploaded"):
                artifact = self._wandb.Artifact(f"weights-{run.id}", type="model", metadata={"step": checkpoint.name})
                for path in (checkpoint / "model.safetensors", self._folder / "config.yaml"):
                    artifact.add_file(str(path))
                run.log_artifact(artifact, aliases=[self._artifacts])
        try:
            run.finish(exit_code=0)
        except Exception as error:
            self._problems.count("not everything was uploaded", error)
            self.sync_command = f"wandb sync {self._run_folder}"

    def _kept_checkpoint(self, summary: Mapping[str, Any]) -> Path | None:
        if self._artifacts == "last" and summary.get("checkpoint"):
            return Path(summary["checkpoint"])
        best = sorted((self._folder / "checkpoints" / "best").glob("step_*")) if self._artifacts == "best" else []
        return best[-1] if best else None

    def _start(self, mode: str) -> None:
        if mode == "disabled":
            return
        server = server_of(self._wandb)
        if mode == "auto":
            mode = "online" if key_source(server) else "offline"
        if mode == "online" and not self._starts_online(server):
            mode = "offline"
        if mode == "offline":
            self._run = self._init("offline")
        self.mode = mode
        self.run_id = self._run.id
        self._run_folder = Path(self._run.dir).parent
        if mode == "offline":
            self.sync_command = f"wandb sync {self._run_folder}"
        with self._problems.counted("the x axis of the charts is not samples_seen"):
            _define_axes(self._run)

    def _starts_online(self, server: str) -> bool:
        try:
            if key_source(server) is None:  # `wandb.init` would ask for one at a terminal
                raise PermissionError(f"no API key for {server}; `wandb login` stores one")
            require_reachable(server)
            self._run = self._init("online")
        except Exception as error:
            self._problems.count("no online run, continuing offline", error)
        return self._run is not None

    def _init(self, mode: str) -> Any:
        resume = "allow" if self.run_id and mode == "online" and not os.environ.get("WANDB_RESUME") else None
        wanted = settings(self._wandb.Settings.model_fields, os.environ)
        return self._wandb.init(**self._identity, resume=resume, settings=self._wandb.Settings(mode=mode, **wanted))


def require_reachable(server: str) -> None:
    """Raise OSError at once where nothing listens: wandb itself would go on trying until `init_timeout`."""
    address = urlsplit(server)
    proxies = urllib.request.getproxies()
    if address.scheme in proxies or "all" in proxies:  # a direct connection says nothing about one through a proxy
        return
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(f"{server} cannot be reached ({error})") from error


def _define_axes(run: Any) -> None:
    run.define_metric("samples_seen")
    run.define_metric("*", step_metric="samples_seen")
    for metric, best in _BEST.items():
        run.define_metric(metric, step_metric="samples_seen", summary=best)
