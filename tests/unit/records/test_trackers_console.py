from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import largebatch.records.trackers.console as trackers_console
from largebatch.records.trackers import ProgressLine, print_plan, print_summary
from largebatch.records.trackers.console import status
from largebatch.records.trackers.tables import print_table, screen

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PLAN = [
    ("global batch", 8192, "batch.total"),
    ("split", "[red] 8 x 64 x 16 [/red]", "solved for 8 ranks"),
    ("learning rate", 3.2, "0.1 x 8192/256, rule linear"),
]


def training(step: int, **more: float) -> dict[str, float | int | str]:
    values: dict[str, float | int | str] = {"train/loss": 0.4321, "train/lr": 0.05, "train/samples_per_s": 3200.0}
    return {"step": step, "samples_seen": 32 * step, "epoch": 0.1, "wall_s": 1.0} | values | more


EVALUATION: dict[str, float | int | str] = {
    "step": 120, "samples_seen": 3840, "eval/val_loss": 0.51239, "eval/val_accuracy": 0.875, "gap/accuracy": 0.0125,
}  # fmt: skip


def plain_console(width: int = 80, **options: Any) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, **options), out


def terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Console, io.StringIO]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return plain_console(width, force_terminal=True)


def test_without_a_terminal_a_row_is_exactly_one_line() -> None:
    console, out = plain_console()
    with ProgressLine(total_steps=1347, total_samples=43104, console=console) as progress:
        progress.log(training(120))
        progress.log(EVALUATION)
        progress.log(training(1347, **{"train/loss": 1.5e-7, "train/lr": 0.0, "train/samples_per_s": 1.25}))
    assert out.getvalue().splitlines() == [
        # (43104 - 3840) / 3200 = 12.27 s
        "step 120/1347  samples 3840  loss 0.4321  lr 0.05  3200 samples/s  eta 0:00:12",
        "step 120/1347  samples 3840  val loss 0.5124  val accuracy 0.875  accuracy gap 0.0125",
        "step 1347/1347  samples 43104  loss 1.5e-07  lr 0  1.25 samples/s  eta 0:00:00",
    ]
    assert progress.problems == []


def test_the_remaining_time_follows_the_smoothed_throughput() -> None:
    console, out = plain_console()
    progress = ProgressLine(total_steps=100, total_samples=3200, console=console)
    progress.log(training(1, **{"train/samples_per_s": 10.0}))
    progress.log(training(2, **{"train/samples_per_s": 20.0}))
    first, second = out.getvalue().splitlines()
    assert first.endswith("eta 0:05:16")  # 3168 / 10 = 316.8 s
    assert second.endswith("eta 0:04:01")  # 3136 / (0.7 * 10 + 0.3 * 20) = 241.2 s


@pytest.mark.parametrize("rate", [0.0, float("nan"), float("inf")])
def test_a_throughput_that_is_no_speed_gives_no_forecast(rate: float) -> None:
    console, out = plain_console()
    ProgressLine(total_steps=10, total_samples=320, console=console).log(
        training(5, **{"train/samples_per_s": rate, "train/loss": float("nan")})
    )
    assert out.getvalue() == "step 5/10  samples 160  loss nan  lr 0.05\n"


@pytest.mark.parametrize("width", [12, 40])
def test_a_line_in_a_log_file_is_never_wrapped(width: int) -> None:
    console, out = plain_console(width)
    ProgressLine(total_steps=1347, total_samples=43104, console=console).log(training(120))
    assert out.getvalue().count("\n") == 1


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    console, out = terminal(80, monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with ProgressLine(total_steps=10, total_samples=320, console=console) as progress:
        progress.log(training(5))
    assert out.getvalue() == "step 5/10  samples 160  loss 0.4321  lr 0.05  3200 samples/s  eta 0:00:00\n"


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (120, "step 5/10  samples 160  loss 0.4321  lr 0.05  3200 samples/s  eta 0:00:00"),
        (70, "step 5/10  loss 0.4321  lr 0.05  3200 samples/s  eta 0:00:00"),
        (65, "step 5/10  loss 0.4321  3200 samples/s  eta 0:00:00"),
        (40, "step 5/10  loss 0.4321"),
        (20, "step 5/10"),
    ],
)
def test_a_terminal_shows_a_bar_and_what_fits_in_one_line(
    width: int, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, out = terminal(width, monkeypatch)
    with ProgressLine(total_steps=10, total_samples=320, console=console) as progress:
        progress.log(training(5))
    lines = [line.strip("\r") for line in ANSI.sub("", out.getvalue()).split("\n")]
    last = [line for line in lines if line.strip()][-1].split("\r")[-1]
    assert last.rstrip().endswith(" " + shown)
    assert last.startswith("━")
    assert max(len(part) for line in lines for part in line.split("\r")) <= width
    assert progress.problems == []


def test_an_evaluation_stays_on_the_terminal_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    console, out = terminal(100, monkeypatch)
    with ProgressLine(total_steps=1347, total_samples=43104, console=console) as progress:
        progress.log(training(120))
        progress.log(EVALUATION)
    text = ANSI.sub("", out.getvalue())
    assert text.count("val accuracy 0.875") == 1
    assert text.index("val accuracy 0.875") < text.rindex("loss 0.4321")


def test_an_interrupted_run_gets_its_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    console, out = terminal(80, monkeypatch)

    def interrupted() -> None:
        with ProgressLine(total_steps=10, total_samples=320, console=console) as progress:
            progress.log(training(5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert out.getvalue().rindex(show) > out.getvalue().rindex(hide)


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    def colours(no_color: bool) -> list[str]:
        console, out = terminal(80, monkeypatch)
        if no_color:
            console, out = plain_console(80, force_terminal=True, _environ={"NO_COLOR": "1", "TERM": "xterm"})
        with ProgressLine(total_steps=10, total_samples=320, console=console) as progress:
            progress.log(training(5))
        print_summary([("a", 1)], "r", [], problems=["lost"], console=console)
        return re.findall(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d)(?:;\d+)*m", out.getvalue())

    assert colours(no_color=False) != []
    assert colours(no_color=True) == []


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_an_output_that_cannot_be_written_is_counted_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for is_terminal in (False, True):
        console = Console(file=FullDisk(), force_terminal=is_terminal)
        with ProgressLine(total_steps=10, total_samples=320, console=console) as progress:
            progress.log(training(1))
            progress.log(EVALUATION)
        assert progress.problems != []
        assert all("OSError: [Errno 28] No space left on device" in problem for problem in progress.problems)


def test_the_plan_is_a_table_with_where_each_value_comes_from() -> None:
    console, out = plain_console(90)
    print_plan(PLAN, console=console)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines if line and not set(line) <= set(" ─-")]
    assert cells == [
        ["plan"],
        ["what", "value", "where it comes from"],
        *([what, str(value), source] for what, value, source in PLAN),  # brackets are not markup
    ]


@pytest.mark.parametrize("width", [48, 20])
def test_a_narrow_plan_loses_no_letter(width: int) -> None:
    console, out = plain_console(width, force_terminal=True, no_color=True, highlight=False)
    print_plan(PLAN, console=console)
    out = io.StringIO(ANSI.sub("", out.getvalue()))
    assert max(map(len, out.getvalue().splitlines())) <= width
    assert "…" not in out.getvalue()
    letters = sorted("".join("".join(map(str, row)) for row in PLAN).replace(" ", ""))
    header = "planwhatvaluewhereitcomesfrom"
    shown = sorted(re.sub(r"[\s─]", "", out.getvalue()))
    assert shown == sorted([*letters, *header])


@pytest.mark.parametrize("width", [80, 48, 20])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_word_of_a_table_is_broken_in_a_file_or_where_there_is_room(width: int, encoding: str) -> None:
    """In a file also where there is none: what is searched for must be found."""
    rows = [
        ("communication/share_of_step", "0.123456789", "largebatch.experiments.verify.planted.OddNet", "a b c d e f"),
        ("x", "", "one two three four five six seven eight nine ten eleven twelve", "[red]"),
    ]
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=width)
    print_table(("first", "second", "third", "of several words"), rows, title="t", console=console)
    console.file.flush()
    shown = raw.getvalue().decode(encoding).replace("|", " ").split()
    assert {word for row in rows for cell in row for word in cell.split()} <= set(shown)
    assert console.width == width
    terminal_console, out = plain_console(60, force_terminal=True, no_color=True, highlight=False)
    print_table(
        ("a", "b"),
        [(".".join("abcdefghijk"), " ".join("word" for _ in range(40)))],
        title="t",
        console=terminal_console,
    )
    lines = ANSI.sub("", out.getvalue())
    assert ".".join("abcdefghijk") in lines
    assert max(map(len, lines.splitlines())) <= 60


def test_a_long_run_makes_a_hundred_lines_and_an_empty_row_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    console, out = plain_console()
    progress = ProgressLine(total_steps=100_000, total_samples=3_200_000, console=console)
    for step in range(10, 100_001, 10):
        progress.log(training(step))
        progress.log({"step": step, "samples_seen": 32 * step, "noise_scale/b_simple": 3.0})
    progress.log(EVALUATION | {"eval/val_top5": 0.99, "eval/val_top5_stderr": 0.1})
    *lines, evaluation = out.getvalue().splitlines()
    assert 100 <= len(lines) <= 102
    assert lines[0].startswith("step 10/100000 ")
    assert lines[-1].startswith("step 100000/100000 ")
    assert evaluation.endswith("accuracy gap 0.0125  val top5 0.99")
    assert all("loss" in line for line in lines)


def test_a_log_is_never_silent_for_long_and_tells_every_bad_step(monkeypatch: pytest.MonkeyPatch) -> None:
    console, out = plain_console()
    progress = ProgressLine(total_steps=10**6, total_samples=10**7, console=console)
    now = 0.0
    monkeypatch.setattr(trackers_console.time, "monotonic", lambda: now)
    for step in range(10, 100, 10):
        now += 20.0
        progress.log(training(step))
    assert [line.split("/")[0] for line in out.getvalue().splitlines()] == ["step 10", "step 40", "step 70"]
    progress.log(training(95, **{"guard/loss": 9.0, "guard/loss_limit": 3.0}))
    assert "BAD STEP: loss 9" in out.getvalue()


def test_the_summary_tells_values_losses_and_whole_paths_however_narrow(tmp_path: Path) -> None:
    console, out = plain_console(40)
    folder = Path("runs") / ("long" * 20)
    problem = "metrics.jsonl: a row was lost: OSError: [Errno 28] No space left on device (5 times)"
    command = ("upload", f"wandb sync {folder}/wandb")
    print_summary(
        [("steps", 120)],
        folder,
        [folder / "plots/training.png"],
        problems=[problem],
        commands=[command],
        console=console,
    )
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[-4:] == [
        f"lost    {problem}", f"run     {folder}", f"plot    {folder}/plots/training.png", f"upload  {command[1]}"
    ]  # fmt: skip
    assert ["steps", "120"] in [line.split() for line in lines]


def test_an_output_without_unicode_still_gets_its_table() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=60)
    print_plan(PLAN, console=console)
    print_summary([("steps", 120)], "run", [], console=console)
    console.file.flush()
    assert b"global batch" in raw.getvalue()


def test_a_status_line_moves_on_a_terminal_and_is_silent_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    console, out = plain_console()
    with status("begins", console=console) as line:
        line.update("3 runs are done")
    assert out.getvalue() == ""
    console, out = terminal(80, monkeypatch)
    with status("begins", console=console) as line:
        line.update("3 runs are done")
    assert "3 runs are done" in ANSI.sub("", out.getvalue())


def test_in_a_notebook_a_redirected_stdout_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich displays tables in the cell there, whatever stdout is."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        print_table(["a"], [["1"]], title="t")
    assert not screen().is_jupyter
    assert "1" in said.getvalue()
