"""At most three real W&B runs, all offline; the only address asked is a closed port of this machine."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wandb
from matplotlib.figure import Figure

from largebatch.__main__ import main
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.figures.draw_plotly import plotly_figure
from largebatch.records.trackers import WandbTracker, key_source, naming_problems
from largebatch.records.trackers.wandb import require_reachable
from tests.reference.wandb_file import WandbRun, chunks, read_run

CONFIG = {"batch": {"total": 96}, "optimizer": "lars", "odd": Path("a/b")}
GAP = Diagram(
    "gap", "the gap", Axis("samples seen"), Axis("gap"), (Line("loss", [32, 64], [0.5, 0.25]), Line("b", [64], [1.0]))
)
CLOSED_PORT = "http://127.0.0.1:9"


def training_rows(steps: range) -> list[dict[str, float | int | str]]:
    return [
        {"step": n, "samples_seen": 96 * n, "epoch": n / 7, "wall_s": 0.1 * n, "train/loss": 1 / n, "note": "warmup"}
        for n in steps
    ]


EVALUATIONS: list[dict[str, float | int | str]] = [
    {"step": n, "samples_seen": 96 * n, "eval/val_accuracy": accuracy, "eval/val_loss": loss}
    for n, accuracy, loss in ((1, 0.25, 2.0), (2, 0.75, 0.5), (3, 0.5, 1.0))
]


@pytest.fixture(scope="module")
def no_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home without a key, and no variable of W&B's."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [*(name for name in os.environ if name.startswith("WANDB_")), "NETRC"]:
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def resumed(no_account: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WandbTracker, WandbTracker]:
    """One run in two attempts: rows 1 to 3, and, resumed by its id, 4 and 5."""
    folder = tmp_path_factory.mktemp("run")
    plot = folder / "training.png"
    Figure(figsize=(1, 1)).savefig(plot)
    options: dict[str, Any] = {"folder": folder, "project": "p", "name": "n", "config": CONFIG, "tags": ["t"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*sys.argv, "--token=supersecret"])
        first = WandbTracker(**options, group="study", job_type="train")
        for row in [*training_rows(range(1, 4)), *EVALUATIONS]:
            first.log(row)
        first.log({"samples_seen": 288, "train/loss": math.nan, "train/grad_norm": math.inf, "np": np.float32(0.5)})  # type: ignore[dict-item]
        first.log({"samples_seen": 288, "bad": object(), "kept": 1})  # type: ignore[dict-item]
        first.finish(
            {"steps": 3, "bad": object(), "last": "value", "eval/val_accuracy": 0.5}, [plot, folder / "missing.png"]
        )
        second = WandbTracker(**options, group="study", job_type="train", run_id=first.run_id, artifacts="last")
        for row in training_rows(range(4, 6)):
            second.log(row)
        second.show({"charts/gap": plotly_figure(GAP)})
        checkpoint = folder / "checkpoints" / "step_00000005"
        checkpoint.mkdir(parents=True)
        for path in (checkpoint / "model.safetensors", checkpoint / "optimizer.safetensors", folder / "config.yaml"):
            path.write_bytes(b"0")
        second.finish({"checkpoint": str(checkpoint)}, [])
    wandb.teardown()  # waits until the last block is on disk
    return folder, first, second


@pytest.fixture(scope="module")
def run(resumed: tuple[Path, WandbTracker, WandbTracker]) -> WandbRun:
    return read_run(resumed[0])


def test_every_row_reads_back_exactly_from_the_files_of_a_resumed_run(run: WandbRun) -> None:
    assert "train/loss" in run.history[0]
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in run.history]
    assert rows[:6] == [*training_rows(range(1, 4)), *EVALUATIONS]
    assert rows[-3:-1] == training_rows(range(4, 6))
    assert len(rows) == 6 + 2 + 1 + 2 + 1  # and two odd rows, one plot, one chart


def test_weights_and_config_are_an_artifact_where_they_are_asked_for(run: WandbRun) -> None:
    (run_id,) = run.run_ids
    files = ["config.yaml", "model.safetensors"]
    kind, aliases, held = run.artifacts[f"weights-{run_id}"]  # beside W&B's own of charts
    assert (kind, sorted(aliases), held) == ("model", ["last", "latest"], files)


def test_a_figure_stands_with_its_lines_at_the_last_samples_seen(
    resumed: tuple[Path, WandbTracker, WandbTracker], run: WandbRun
) -> None:
    (path,) = resumed[0].rglob("*.plotly.json")
    traces = json.loads(path.read_text())["data"]
    assert [(one["name"], one["x"], one["y"]) for one in traces] == [("loss", [32, 64], [0.5, 0.25]), ("b", [64], [1])]
    assert run.history[-1]["samples_seen"] == 480
    assert str(path).endswith(run.history[-1]["charts/gap/path"])


def test_a_key_is_not_needed_and_both_attempts_are_one_run(
    resumed: tuple[Path, WandbTracker, WandbTracker], run: WandbRun
) -> None:
    folder, first, second = resumed
    assert (first.mode, second.mode) == ("offline", "offline")
    assert run.run_ids == [first.run_id] == [second.run_id]
    assert len(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == 2
    assert first.sync_command is not None
    assert Path(first.sync_command.removeprefix("wandb sync ")).is_relative_to(folder / "wandb")
    assert second.problems == []


def test_samples_seen_is_the_x_axis_and_the_best_value_is_the_summary(run: WandbRun) -> None:
    assert run.step_metrics["*"] == "samples_seen"
    assert run.best == {"eval/val_accuracy": "max", "eval/val_loss": "min"}
    assert (run.summary["eval/val_accuracy"], run.summary["eval/val_loss"]) == ({"max": 0.75}, {"min": 0.5})


def test_names_config_summary_and_exit_are_recorded(run: WandbRun) -> None:
    assert (run.project, run.name, run.group, run.job_type, run.tags) == ("p", "n", "study", "train", ["t"])
    assert {key: run.config[key] for key in CONFIG} == {"batch": {"total": 96}, "optimizer": "lars", "odd": "a/b"}
    assert (run.summary["steps"], run.summary["last"]) == (3, "value")
    assert run.exit_codes == [0, 0]
    assert run.host == ""  # W&B would record the name of the machine


@pytest.mark.fault(51, "W&B gets an odd value", "counted")
def test_odd_values_cost_themselves_and_are_counted(
    resumed: tuple[Path, WandbTracker, WandbTracker], run: WandbRun
) -> None:
    odd, partial = run.history[6], run.history[7]
    assert math.isnan(odd["train/loss"])
    assert (odd["train/grad_norm"], odd["np"]) == (math.inf, 0.5)
    assert partial["kept"] == 1
    assert "bad" not in partial
    assert resumed[1].problems == [
        "W&B: the value of 'bad' was left out: object is no number or text",
        f"W&B: a plot was lost: FileNotFoundError: [Errno 2] No such file or directory: '{resumed[0]}/missing.png'",
        "W&B: a summary value was lost: TypeError: Object of type object is not JSON serializable",
    ]


def test_a_plot_stands_at_the_last_samples_seen(
    resumed: tuple[Path, WandbTracker, WandbTracker], run: WandbRun
) -> None:
    (plot,) = [row for row in run.history if row.get("plots/training/_type") == "image-file"]
    assert plot["samples_seen"] == 288
    assert len(list(resumed[0].glob(f"wandb/*/files/{plot['plots/training/path']}"))) == 1


def test_the_command_line_and_its_secrets_are_stored_nowhere(
    resumed: tuple[Path, WandbTracker, WandbTracker], run: WandbRun
) -> None:
    assert "environment" not in run.kinds
    files = [file for file in resumed[0].rglob("*") if file.is_file()]
    assert len(files) > 4
    assert [file for file in files if b"supersecret" in file.read_bytes()] == []


def test_the_reader_refuses_a_damaged_or_cut_file(resumed: tuple[Path, WandbTracker, WandbTracker]) -> None:
    data = next(resumed[0].glob("wandb/offline-run-*/run-*.wandb")).read_bytes()
    assert len(list(chunks(data))) > 5
    with pytest.raises(ValueError, match="checksum"):
        list(chunks(data[:200] + bytes([data[200] ^ 1]) + data[201:]))
    with pytest.raises(EOFError):
        list(chunks(data[:-1]))


@pytest.mark.fault(48, "W&B down at the start", "offline, a line")
def test_a_server_that_is_down_costs_a_line_and_no_time(
    no_account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED_PORT)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    start = time.monotonic()
    tracker = WandbTracker(folder=tmp_path, project="p", name="n", config={})  # auto: there is a key
    assert time.monotonic() - start < 10
    tracker.log({"step": 1, "samples_seen": 32, "train/loss": 0.5})
    tracker.finish({}, [])
    (problem,) = tracker.problems
    assert problem.startswith(f"W&B: no online run, continuing offline: ConnectionError: {CLOSED_PORT}")
    assert problem in capsys.readouterr().err
    assert tracker.mode == "offline"
    wandb.teardown()
    assert read_run(tmp_path).history[0]["train/loss"] == 0.5


class FakeRun:
    """A run whose service has died: every call raises."""

    id = "abc"
    dir = "/nowhere/run-abc/files"
    summary: dict[str, Any] = {}  # noqa: RUF012

    def define_metric(self, *args: object, **options: object) -> None:
        raise ConnectionResetError("Connection lost")

    def log(self, row: dict[str, Any]) -> None:
        raise ConnectionResetError("Connection lost")

    def finish(self, exit_code: int) -> None:
        raise TimeoutError("Timed out finishing run.")


class FakeWandb:
    """wandb's surface, remembering how runs were started."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.Settings = SimpleSettings
        self.__spec__ = ModuleSpec("wandb", None)  # others look whether it is installed

    def init(self, **options: Any) -> FakeRun:
        self.starts.append(options)
        return FakeRun()


class SimpleSettings(SimpleNamespace):
    model_fields = ("x_disable_meta", "host", "save_code", "disable_git", "silent", "console", "init_timeout",
                    "finish_timeout", "finish_timeout_raises", "reinit")  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, no_account: Path) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def start(tmp_path: Path, **options: Any) -> WandbTracker:
    return WandbTracker(folder=tmp_path, project="p", name="n", config={}, **options)


@pytest.mark.fault(49, "W&B dies", "counted, never raises")
def test_a_service_that_dies_is_counted_and_never_raises(fake: FakeWandb, tmp_path: Path) -> None:
    tracker = start(tmp_path)
    for step in range(3):
        tracker.log({"step": step, "samples_seen": step})
    tracker.show({"charts/gap": plotly_figure(GAP)})
    tracker.finish({"a": 1}, [])
    tracker.log({"step": 4, "samples_seen": 4})  # after the end: nothing to do
    assert tracker.problems == [
        "W&B: the x axis of the charts is not samples_seen: ConnectionResetError: Connection lost",
        "W&B: a row was lost: ConnectionResetError: Connection lost (3 times)",
        "W&B: a figure was lost: AttributeError: 'FakeWandb' object has no attribute 'Plotly'",
        "W&B: not everything was uploaded: TimeoutError: Timed out finishing run.",
    ]
    assert tracker.sync_command == "wandb sync /nowhere/run-abc"


@pytest.mark.fault(50, "no key, no terminal", "never asks")
@pytest.mark.bad_input("W&B online without a key")
def test_online_without_a_key_never_asks_for_one(fake: FakeWandb, tmp_path: Path) -> None:
    tracker = start(tmp_path, mode="online")
    assert [options["settings"].mode for options in fake.starts] == ["offline"]
    assert "no API key for https://api.wandb.ai; `wandb login` stores one" in tracker.problems[0]


def test_settings_keep_secrets_out_and_bound_the_waiting(fake: FakeWandb, tmp_path: Path) -> None:
    start(tmp_path)
    settings = fake.starts[0]["settings"]
    assert (settings.x_disable_meta, settings.save_code, settings.disable_git) == (True, False, True)
    assert (settings.init_timeout, settings.finish_timeout, settings.console) == (15, 60, "off")
    assert settings.host == ""


VARIABLES = {
    "WANDB_PROJECT": "team-project", "WANDB_ENTITY": "team", "WANDB_NAME": "from-env", "WANDB_RUN_GROUP": "sweep-7",
    "WANDB_JOB_TYPE": "pretrain", "WANDB_NOTES": "note", "WANDB_TAGS": "a, b", "WANDB_RUN_ID": "mine",
    "WANDB_DIR": "elsewhere",
}  # fmt: skip
SAID = {
    "project": "team-project", "entity": "team", "name": "from-env", "group": "sweep-7", "job_type": "pretrain",
    "notes": "note", "tags": ["a", "b"], "id": "mine", "dir": "elsewhere",
}  # fmt: skip


def test_variables_win_over_our_defaults_and_lose_to_what_was_given(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An argument of `wandb.init` wins over its variables, so a default of ours must not be one."""
    ours = {"name": "digits"}
    WandbTracker(folder=tmp_path, config={}, defaults=ours, run_id="old")
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    tracker = WandbTracker(folder=tmp_path, config={}, defaults=ours, run_id="old")
    given = {key: ["c"] if key == "tags" else f"my-{key}" for key in SAID if key != "dir"}
    WandbTracker(folder=tmp_path, config={}, defaults=ours, run_id="old", **given)
    WandbTracker(folder=tmp_path, config={}, tags=[])  # no tags, though the variable has some
    silent, spoken, explicit, untagged = ({key: start[key] for key in SAID} for start in fake.starts)
    assert silent == dict.fromkeys(SAID) | {
        "project": "largebatch", "name": "digits", "job_type": "train", "id": "old", "dir": str(tmp_path),
    }  # fmt: skip
    assert spoken == SAID
    assert tracker.variables == list(VARIABLES)
    assert explicit == given | {"dir": "elsewhere"}
    assert untagged["tags"] == []


@pytest.mark.usefixtures("in_a_folder")
def test_a_run_is_named_by_the_environment_unless_by_a_key(
    fake: FakeWandb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The title of an experiment or a debug choice is a default of ours, run.name is the user's."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    tiny = ["train", "debug=tiny", "logger=default", "logger.plots=false", "observers.progress=false", "length=1steps"]
    assert main([*tiny, "run.dir=a", "logger.wandb.group=g"]) == 0
    assert "W&B run as WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_JOB_TYPE, " in capsys.readouterr().out
    assert main([*tiny, "run.dir=b", "run.name=mine"]) == 0
    assert [(one["name"], one["group"], one["project"]) for one in fake.starts] == [
        ("from-env", "g", "team-project"),
        ("mine", "sweep-7", "team-project"),
    ]


def test_settings_of_ours_give_way_to_variables_too(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_CONSOLE", "WANDB_SILENT", "WANDB_INIT_TIMEOUT", "WANDB_HOST", "WANDB__DISABLE_META"):
        monkeypatch.setenv(name, "said")
    start(tmp_path)
    assert {"console", "silent", "init_timeout", "host", "x_disable_meta"}.isdisjoint(vars(fake.starts[0]["settings"]))
    assert fake.starts[0]["settings"].finish_timeout == 60


def test_files_of_wandb_win_over_our_defaults_and_lose_to_variables(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`wandb init` and `wandb offline` write them; `wandb.setup()` reads them."""
    found = SimpleNamespace(mode="disabled", project="of-file", entity="me", model_fields_set={"mode", "project"})
    monkeypatch.setattr(fake, "setup", lambda: SimpleNamespace(settings=found), raising=False)
    assert WandbTracker(folder=tmp_path, config={}).mode == "disabled"
    monkeypatch.setenv("WANDB_MODE", "offline")
    WandbTracker(folder=tmp_path, config={})
    monkeypatch.setenv("WANDB_PROJECT", "said")
    WandbTracker(folder=tmp_path, config={})
    assert [(one["project"], one["entity"]) for one in fake.starts] == [("of-file", None), ("said", None)]


def test_without_a_home_wandb_writes_beside_the_run(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container with an unknown user W&B would raise for want of ~, and the run would be lost."""
    names = (
        "WANDB_CONFIG_DIR",
        "WANDB_CACHE_DIR",
        "WANDB_DATA_DIR",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
    )
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    start(tmp_path)
    assert not {*names} & {*os.environ}
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv("WANDB_CACHE_DIR", "mine")
    start(tmp_path)
    config, cache, data = (f"{tmp_path}/wandb/{name}" for name in ("config", "cache", "data"))
    assert [os.environ[name] for name in names] == [config, "mine", data, config, cache, data]


@pytest.mark.parametrize(
    ("mode", "variable", "becomes"),
    [
        ("auto", "", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "disabled", "disabled"),
        ("offline", "disabled", "offline"),
        ("disabled", "offline", "disabled"),
        ("auto", "WANDB_DISABLED", "disabled"),  # transformers' variable
        ("offline", "WANDB_DISABLED", "offline"),
    ],
)
def test_the_environment_decides_for_auto_alone(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, variable: str, becomes: str
) -> None:
    monkeypatch.setenv(*(("WANDB_DISABLED", "true") if variable == "WANDB_DISABLED" else ("WANDB_MODE", variable)))
    tracker = start(tmp_path, mode=mode, run_id="kept")
    assert tracker.mode == becomes
    assert len(fake.starts) == (becomes != "disabled")
    assert tracker.run_id == ("kept" if becomes == "disabled" else "abc")


def test_a_config_that_cannot_be_stored_costs_the_tracker_and_not_the_run(fake: FakeWandb, tmp_path: Path) -> None:
    circular: dict[str, Any] = {}
    circular["self"] = circular
    tracker = WandbTracker(folder=tmp_path, project="p", name="n", config=circular)
    assert (tracker.mode, fake.starts) == ("disabled", [])
    assert "ValueError: Circular reference" in tracker.problems[0]


def test_a_proxy_is_trusted_and_no_proxy_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "localhost")
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9 cannot be reached"):
        require_reachable(CLOSED_PORT)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    require_reachable(CLOSED_PORT)


def test_an_unknown_mode_names_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'of' does not exist\. Choose one of auto, online, offline, disabled"):
        start(tmp_path, mode="of")
    monkeypatch.setenv("WANDB_MODE", "off")
    with pytest.raises(ValueError, match=r"WANDB_MODE=off: use online, offline or disabled, or unset it"):
        start(tmp_path)


def test_a_broken_installation_costs_the_tracker_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = start(tmp_path, mode="offline")
    tracker.log({"step": 1, "samples_seen": 1})
    tracker.finish({}, [])
    (problem,) = tracker.problems
    assert "no W&B run; the records are in metrics.jsonl: ModuleNotFoundError" in problem


def test_a_key_is_found_where_wandb_looks(no_account: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_source() is None
    file = tmp_path / "netrc"
    file.write_text("machine api.wandb.ai login user password topsecret\nmachine empty.org login user\n")
    monkeypatch.setenv("NETRC", str(file))
    assert key_source() == str(file)
    assert key_source("https://other.org") is None
    file.write_text("machine api.wandb.ai login")  # broken
    assert key_source() is None
    monkeypatch.setenv("WANDB_API_KEY", "topsecret")
    assert key_source() == "WANDB_API_KEY"


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("WANDB_PROJECT", "a/b", "project"),
        ("WANDB_PROJECT", "p" * 129, "project"),
        ("WANDB_RUN_ID", "a:b", "run_id"),
        ("WANDB_RUN_ID", "a%b", None),
        ("WANDB_TAGS", "a,", "run_tags"),
        ("WANDB_TAGS", "t" * 65, "run_tags"),
        ("WANDB_TAGS", "", None),
        ("WANDB_RESUME", "perhaps", "resume"),
        ("WANDB_RESUME", "never", None),
        ("WANDB_CONSOLE", "no", "console"),
    ],
)
def test_what_wandb_would_refuse_is_refused_before_the_run(variable: str, value: str, key: str | None) -> None:
    """W&B's own settings are the truth; a run without its record was started."""
    problems = naming_problems({}, {variable: value})
    if key is None:
        assert problems == []
        return
    (problem,) = problems
    assert problem.startswith(variable)
    with pytest.raises((ValueError, wandb.errors.UsageError)):
        wandb.Settings(**{key: value.split(",") if key == "run_tags" else value})


def test_an_empty_variable_is_an_unset_one(fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B ends with an error of an empty WANDB_TAGS or WANDB_RUN_ID."""
    monkeypatch.setenv("WANDB_TAGS", "")
    monkeypatch.setenv("WANDB_RUN_ID", "")
    start(tmp_path)
    assert not os.environ.keys() & {"WANDB_TAGS", "WANDB_RUN_ID"}
