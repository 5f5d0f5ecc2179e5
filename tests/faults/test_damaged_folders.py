"""A damaged run folder is named with the reason, on the page and on the console, and all the others are shown."""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from largebatch.__main__ import main
from largebatch.records.figures import draw_png
from tests.deadline import deadline
from tests.faults.damaged_folders import DIFFERENT, KINDS, LEFT_OUT, SCRIPT, TERMINAL, WHOLE, make, mutate
from tests.unit.records.report_folders import write_json, write_run
from tests.unit.records.test_report_records import EARLIER, RECORDS

DEADLINE_S = 120  # of one page, on a busy machine: whoever waits for a pipe waits for ever
NUM_SOAKED = 300
ODD_NAMES = (
    os.fsdecode(b"not-utf-8-\xff\xfe"),
    SCRIPT.replace("/", "_"),
    TERMINAL,
    "[red]brackets[/]",
    "‮gnp.exe",
    "a\nb",
)


def page_data(page: Path) -> tuple[str, dict[str, Any]]:
    """The texts of a page, and what its scripts draw."""
    html = page.read_bytes().decode()  # every byte is UTF-8
    (data,) = re.findall(r'<script[^>]*id="data"[^>]*>(.*?)</script>', html, re.S)
    return html.partition('id="plotly"')[0].replace(data, ""), json.loads(data)


def series_of(data: dict[str, Any], names: set[str]) -> dict[str, Any]:
    found = zip(data["comparison"]["names"], data["comparison"]["series"], strict=True)
    return {name: series for name, series in found if name in names}


@pytest.mark.fault(62, "damaged run folder", "named, the others drawn; no traceback, no hang")
def test_of_forty_damaged_folders_each_is_named_and_the_healthy_ones_are_drawn_as_without_them(tmp_path, capsys):
    healthy = tmp_path / "healthy"
    for number, name in enumerate(ODD_NAMES):
        write_run(healthy / name, 32 << number % 3, seed=number)
    assert main(["report", str(healthy), "--out", str(tmp_path / "healthy.html")]) == 0
    _, alone = page_data(tmp_path / "healthy.html")
    expected = {name: make(tmp_path / "damaged", name) for name in DIFFERENT}
    for number, name in enumerate(ODD_NAMES):
        (write_run(tmp_path / "odd" / name, 32) / "plan.json").write_text("{" if number % 2 else f'{{"{SCRIPT}": 1}}')
    capsys.readouterr()
    with deadline(DEADLINE_S):
        code = main(["report", str(tmp_path), "--out", str(tmp_path / "all.html")])
    said, complaints = capsys.readouterr()
    assert code == 3
    texts, together = page_data(tmp_path / "all.html")
    shown = set(together["comparison"]["names"])
    names = set(alone["comparison"]["names"])
    assert len(names) == len(ODD_NAMES)
    assert series_of(together, names) == series_of(alone, names)
    assert shown == names | {name for name, what in expected.items() if what != LEFT_OUT}
    for name, what in expected.items():
        if what != WHOLE:
            assert f"{what}: {tmp_path}/damaged/{name}: " in complaints
            assert f"<td>{tmp_path}/damaged/{name}</td>" in texts
    assert complaints.count("\n") == len(ODD_NAMES) + sum(what != WHOLE for what in expected.values())
    assert f"{len(shown)} runs, 0 records" in said
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f‮]", said + complaints), "a terminal obeys these"
    assert SCRIPT not in texts
    assert "root:" not in texts, "what a link out of the folder leads to is not shown"
    assert not (tmp_path / "taken_over").exists()
    assert not Path("taken_over").exists()
    assert (tmp_path / "all.html").stat().st_size < 8e6


@pytest.mark.fault(62)
def test_folders_that_vanish_or_cannot_be_looked_into_are_named(tmp_path, monkeypatch, capsys):
    from largebatch.records.report import reading

    for name in ("kept", "vanished", "locked"):
        write_run(tmp_path / name, 32)

    def scandir(path: Path) -> Any:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return os.scandir(path)

    def read_run(folder: Path) -> Any:
        if folder.name == "vanished":  # between the look into its parent and its first file
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        return original(folder)

    original = reading.read_run
    monkeypatch.setattr(reading, "read_run", read_run)
    monkeypatch.setattr(reading, "scandir", scandir)
    code = main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")])
    said, complaints = capsys.readouterr()
    assert (code, said.splitlines()[0]) == (3, "1 runs, 0 records")
    assert f"left out: {tmp_path}/vanished: plan.json is missing" in complaints
    assert f"left out: {tmp_path}/locked: cannot be looked into: Permission denied" in complaints


@pytest.mark.fault(62)
def test_what_stops_the_page_all_the_same_is_found_and_left_out(tmp_path, monkeypatch, capsys):
    from largebatch.records.report import layout

    for batch in (32, 64, 128):
        write_run(tmp_path / str(batch), batch)
    original = layout.curves

    def curves(runs: Any) -> Any:
        names = {run.name for run in runs}
        if "64" in names:
            raise ZeroDivisionError("a kind of run that nobody thought of")
        return original(runs)

    monkeypatch.setattr(layout, "curves", curves)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 3
    said, complaints = capsys.readouterr()
    assert said.startswith("2 runs, 0 records")
    assert f"left out: {tmp_path}/64: cannot be drawn: ZeroDivisionError: a kind of run" in complaints
    monkeypatch.setattr(layout, "curves", lambda runs: original(runs) if len(runs) < 3 else 1 / 0)  # only together
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 3
    assert capsys.readouterr().out.startswith("2 runs, 0 records")


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `compare`: matplotlib takes longer than all that is asked here."""
    monkeypatch.setattr(draw_png, "draw_panels", lambda figures, path, title: path)


@pytest.mark.fault(62)
def test_compare_leaves_damaged_runs_out_by_name_and_ledger_refuses_them(tmp_path, capsys, without_pictures):
    names = ("plan_world_text", "yaml_bomb", "metrics_pipe", "config_link_out", "torn_in_the_middle", "negative_steps")
    for name in names:
        make(tmp_path, name)
    small, large = (str(write_run(tmp_path / str(batch), batch)) for batch in (32, 64))
    given = [small, large, *(str(tmp_path / name) for name in names)]
    with deadline(DEADLINE_S):
        code = main(["compare", *given, "--out", str(tmp_path / "out")])
    _, complaints = capsys.readouterr()
    assert code == 3
    for name in names[:4]:
        assert f"left out: {tmp_path}/{name}: " in complaints
    for name in names[4:]:
        assert f"damaged: {tmp_path}/{name}: " in complaints
    record = json.loads((tmp_path / "out" / "large_batch_gap.json").read_text())["numbers"]
    assert record["left_out"] == complaints.splitlines()
    assert sorted(map(len, record["runs"].values())) == [1, 3]
    os.mkfifo(tmp_path / "ledger.jsonl")
    with deadline(DEADLINE_S):
        assert main(["diff", str(tmp_path / "ledger.jsonl"), str(tmp_path)]) == 2
    assert "ledger.jsonl is a pipe, not a regular file" in capsys.readouterr().err


def mutated_record(values: Any, draw: random.Random) -> Any:
    """A record with something else in one place."""
    odd = (None, "x", -1, 10**30, 1e308, [], {}, [[]], float("nan"), SCRIPT, True, [None, 1.0])
    if isinstance(values, dict) and values and draw.random() < 0.85:
        key = draw.choice(list(values))
        return values | {key: mutated_record(values[key], draw)}
    if isinstance(values, list) and values and draw.random() < 0.85:
        place = draw.randrange(len(values))
        return [*values[:place], mutated_record(values[place], draw), *values[place + 1 :]]
    return draw.choice(odd)


@pytest.mark.fault(63)
@pytest.mark.soak
def test_three_hundred_damaged_folders_end_without_traceback_or_hang(tmp_path, capsys, without_pictures):
    outcomes: Counter[tuple[str, str, int]] = Counter()
    small, large = (write_run(tmp_path / "healthy" / str(batch), batch) for batch in (32, 128))
    for number in range(NUM_SOAKED):
        name = list(KINDS)[number] if number < len(KINDS) else f"mutated_{number}"
        folder = tmp_path / "damaged" / name
        if number < len(KINDS):
            make(tmp_path / "damaged", name)
        else:
            mutate(write_run(folder, 64, num_rows=6), number)
            written = write_json(tmp_path / "damaged" / name / "record" / "x.json", {})
            kinds = [*RECORDS.items(), *EARLIER.items()]
            kind, record = kinds[number % len(kinds)]
            written.unlink()
            write_json(written.parent / kind, mutated_record(record, random.Random(number)))
        page = tmp_path / "page.html"
        for verb in (
            ["report", str(folder), str(small), "--out", str(page)],
            ["compare", str(folder), str(small), str(large), "--out", str(tmp_path / "compared")],
        ):
            with deadline(DEADLINE_S):
                code = main(verb)
            said, complaints = capsys.readouterr()
            # Two: what became another task is compared with nothing; the runs were named one by one.
            refused = verb[0] == "compare" and complaints.rpartition("largebatch compare: ")[2].startswith(
                "the runs differ"
            )
            assert code == (2 if refused else 3 if complaints else 0), (name, verb[0], complaints)
            assert refused or name in complaints or code == 0, (name, complaints)
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", said + complaints), name
            outcomes["systematic" if number < len(KINDS) else "mutated", verb[0], code] += 1
        texts, data = page_data(page)
        assert "32" in data["comparison"]["names"], name
        assert SCRIPT not in texts, name
    with capsys.disabled():
        print("\n| folders | verb | all shown (0) | named, the others shown (3) | another task, refused (2) |")
        print("|---|---|---|---|---|")
        for kind, verb in sorted({key[:2] for key in outcomes}):
            print(f"| {kind} | {verb} | {' | '.join(str(outcomes[kind, verb, code]) for code in (0, 3, 2))} |")
