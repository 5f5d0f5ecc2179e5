"""Run folders as kills, full disks, editors, copies and strangers leave them: by kind, and by seeded mutations.

`KINDS` is name -> (what `report` does with the run, what makes the damage in the folder of a healthy run). A run that
is `LEFT_OUT` is named with a reason and not drawn; one that is `DAMAGED` is named and drawn as far as it goes; a
`WHOLE` one is as good as healthy.
"""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.unit.records.report_folders import write_run

LEFT_OUT, DAMAGED, WHOLE = "left out", "damaged", "whole"
SCRIPT = "<script>document.title='taken over'</script>"
TERMINAL = "\x1b]0;taken over\x07\x1b[2J"
FILES = ("metrics.jsonl", "plan.json", "config.yaml", "summary.json")
Damage = Callable[[Path], None]


def content(file: str, text: str | bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def json_value(file: str, **values: Any) -> Damage:
    """Keys of a JSON file with other values."""

    def damage(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


def rows(change: Callable[[list[dict[str, Any]]], list[Any]]) -> Damage:
    """Other rows in metrics.jsonl; a text is a line as it is."""

    def damage(folder: Path) -> None:
        path = folder / "metrics.jsonl"
        changed = change([json.loads(line) for line in path.read_text().splitlines()])
        path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in changed))

    return damage


def every_row(**values: Any) -> Damage:
    return rows(lambda found: [row | values for row in found])


def config(line: str) -> Damage:
    def damage(folder: Path) -> None:
        with (folder / "config.yaml").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return damage


def instead(file: str, make: Callable[[Path], object]) -> Damage:
    """Something else than a file in the place of one."""

    def damage(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return damage


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has 107 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _link_out(file: str) -> Damage:
    """The file as it was, but elsewhere."""

    def damage(folder: Path) -> None:
        elsewhere = folder.parent.with_name(f"elsewhere_{folder.name}")
        (folder / file).rename(elsewhere)
        (folder / file).symlink_to(elsewhere)

    return damage


def _hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk


def _bomb(levels: int) -> str:
    names = "abcdefghijklmnop"[:levels]
    lines = [f"bomb_{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in pairwise(names)]
    return "\n".join(["bomb_a: &a [x, x, x, x, x, x, x, x, x, x]", *lines])


def _missing(file: str) -> Damage:
    return lambda folder: (folder / file).unlink()


def _windows(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def _cut(folder: Path) -> None:
    os.truncate(folder / "metrics.jsonl", os.path.getsize(folder / "metrics.jsonl") - 9)


def layers(**values: Any) -> Damage:
    return content("layers.jsonl", json.dumps({"step": 1, "samples_seen": 2} | values) + "\n")


def _merge_bomb() -> str:
    names = "abcdefghijk"
    copies = (f"{new}: &{new} {{{', '.join(f'k{i}: *{old}' for i in range(12))}}}" for old, new in pairwise(names))
    return "\n".join(["a: &a {x: 1, y: 2}", *copies])


def _torn(found: list[dict[str, Any]]) -> list[Any]:
    return [*found[:3], '{"step": 4, "samples_seen": 1', *found[3:]]


KINDS: dict[str, tuple[str, Damage]] = {
    "no_number_of_400_digits": (DAMAGED, rows(lambda found: [found[0] | {"train/loss": "1" * 400}, *found[1:]])),
    "whole_number_of_400_digits": (WHOLE, rows(lambda found: [found[0] | {"train/loss": 10**399}, *found[1:]])),
    "whole_number_of_5000_digits": (
        DAMAGED,
        rows(lambda found: [*found, '{"step": 1, "samples_seen": 1, "train/loss": ' + "1" * 5000 + "}"]),
    ),
    "values_beyond_floats": (
        WHOLE,
        rows(lambda found: [*found, '{"step": 999, "samples_seen": 8192, "train/loss": 1e999}']),
    ),
    "values_that_overflow_in_sums": (
        WHOLE,
        every_row(**{"eval/val_loss": 1.7e308, "train/loss": 1.7e308, "time/step_s": 1.7e308}),
    ),
    "not_finite": (WHOLE, every_row(**{"train/loss": "NaN", "eval/val_loss": "Infinity", "time/step_s": "-Infinity"})),
    "bare_nan": (WHOLE, rows(lambda found: [*found, '{"step": 999, "samples_seen": 8192, "train/loss": NaN}'])),
    "texts_for_numbers": (
        DAMAGED,
        every_row(**{"train/loss": SCRIPT, "eval/val_loss": "high", "gap/is_augmented": "no"}),
    ),
    "objects_for_numbers": (
        DAMAGED,
        every_row(**{"train/loss": {"a": 1}, "eval/val_accuracy": [1, 2], "time/step_s": None}),
    ),
    "negative_steps": (DAMAGED, rows(lambda found: [found[0] | {"step": -5}, *found[1:]])),
    "only_negative_steps": (LEFT_OUT, every_row(step=-1)),
    "huge_steps": (DAMAGED, rows(lambda found: [*found, found[-1] | {"step": 2**62, "samples_seen": 10**300}])),
    "largest_steps": (WHOLE, rows(lambda found: [*found, found[-1] | {"step": 2**53, "samples_seen": 2**53}])),
    "steps_that_are_texts": (LEFT_OUT, every_row(step="one")),
    "out_of_order": (DAMAGED, rows(lambda found: found[::-1])),
    "each_row_twice": (WHOLE, rows(lambda found: [one for row in found for one in (row, row)])),
    "a_run_twice": (DAMAGED, rows(lambda found: [*found, *found])),
    "one_row": (WHOLE, rows(lambda found: found[:1])),
    "torn_in_the_middle": (DAMAGED, rows(_torn)),
    "being_written": (WHOLE, _cut),
    "other_json": (DAMAGED, rows(lambda found: [*found, "[1]", "7", '"text"', "null", "{}"])),
    "deep_json": (DAMAGED, rows(lambda found: [*found, "[" * 200_000, '{"a":' * 200_000])),
    "names_10000": (WHOLE, every_row(**{f"own/{SCRIPT}{number}": 1.0 for number in range(10_000)})),
    "blank_lines": (WHOLE, rows(lambda found: ["", *found, "", ""])),
    "windows_line_ends": (WHOLE, _windows),
    "zeros_after_a_power_cut": (DAMAGED, rows(lambda found: [*found, "\0" * 4096])),
    "hole_of_a_terabyte": (LEFT_OUT, instead("metrics.jsonl", _hole)),
    "timestamps": (WHOLE, every_row(wall_s=1e300, epoch=-1e300, **{"time/wall": "9999-99-99"})),
    "times_before_1970": (WHOLE, lambda folder: os.utime(folder / "metrics.jsonl", (-(2**31), -(2**31)))),
    "junk_layers": (DAMAGED, content("layers.jsonl", random.Random(1).randbytes(5000))),
    "layers_of_objects": (WHOLE, layers(**{"trust_ratio/a": {}, f"trust_ratio/{SCRIPT}": 10**400})),
    "layers_5000": (WHOLE, layers(**{f"trust_ratio/{n}": 0.5 for n in range(5000)})),
    "layers_pipe": (DAMAGED, instead("layers.jsonl", os.mkfifo)),
    "plan_batch_0": (LEFT_OUT, json_value("plan.json", global_batch_size=0)),
    "plan_batch_huge": (LEFT_OUT, json_value("plan.json", global_batch_size=10**30)),
    "plan_batch_large": (WHOLE, json_value("plan.json", global_batch_size=2**53, num_samples=2**53)),
    "plan_batch_true": (LEFT_OUT, json_value("plan.json", global_batch_size=True)),
    "plan_batch_1.5": (LEFT_OUT, json_value("plan.json", global_batch_size=1.5)),
    "plan_world_0": (LEFT_OUT, json_value("plan.json", world_size=0)),
    "plan_world_text": (LEFT_OUT, json_value("plan.json", world_size="2")),
    "plan_accumulation_0": (LEFT_OUT, json_value("plan.json", grad_accum_steps=0)),
    "plan_samples_negative": (LEFT_OUT, json_value("plan.json", num_samples=-1)),
    "plan_samples_list": (LEFT_OUT, json_value("plan.json", num_samples=[SCRIPT])),
    "plan_400_digits": (LEFT_OUT, json_value("plan.json", global_batch_size=10**400)),
    "plan_deep": (LEFT_OUT, content("plan.json", "[" * 100_000)),
    "status_object": (LEFT_OUT, json_value("summary.json", status={"a": [1]})),
    "status_script": (WHOLE, json_value("summary.json", status=SCRIPT)),
    "status_long": (WHOLE, json_value("summary.json", status="x" * 10**6)),
    "status_half_a_pair": (WHOLE, content("summary.json", '{"status": "\\ud800"}')),
    "yaml_bomb": (LEFT_OUT, config(_bomb(12))),
    "yaml_merge_bomb": (LEFT_OUT, content("config.yaml", _merge_bomb())),
    "yaml_itself": (LEFT_OUT, content("config.yaml", "a: &a [*a]\n")),
    "yaml_deep": (LEFT_OUT, config("deep: " + "[" * 3000 + "]" * 3000)),
    "yaml_python": (LEFT_OUT, config("run_me: !!python/object/apply:os.system ['touch taken_over']")),
    "yaml_400_digits": (WHOLE, config("seed_of: " + "9" * 400)),
    "yaml_5000_digits": (LEFT_OUT, config("seed_of: " + "9" * 5000)),
    "yaml_list": (LEFT_OUT, content("config.yaml", "- 1\n- 2\n")),
    "yaml_number": (LEFT_OUT, content("config.yaml", "7\n")),
    "yaml_many_documents": (LEFT_OUT, config("---\na: 1")),
    "yaml_same_key": (LEFT_OUT, config("seed: 1")),
    "yaml_long_text": (WHOLE, config("note: '" + "y" * 300_000 + "'")),
    "yaml_broken_interpolation": (LEFT_OUT, config("other: ${a")),
    "yaml_interpolation": (WHOLE, config("other: ${oc.env:HOME}")),
    "yaml_odd_keys": (WHOLE, config("1: a\ntrue: b\n'': c\n'a.b': d")),
    "model_script": (WHOLE, config(f'run: {{name: "{SCRIPT}"}}\n"{SCRIPT}": 1')),
    "model_terminal": (LEFT_OUT, content("config.yaml", f"model: {{_target_: '{TERMINAL}'}}\n")),
    "optimizer_long": (WHOLE, content("config.yaml", f"optimizer: {{_target_: '{'z' * 10_000}'}}\n")),
    "config_2_mb": (LEFT_OUT, content("config.yaml", "a: '" + "x" * 2_000_000 + "'")),
    "config_latin": (LEFT_OUT, content("config.yaml", "name: Zürich".encode("latin-1"))),
}
for _file in FILES:
    _title = _file.partition(".")[0]
    KINDS |= {
        f"{_title}_missing": (WHOLE if _file == "summary.json" else LEFT_OUT, _missing(_file)),
        f"{_title}_empty": (LEFT_OUT, content(_file, b"")),
        f"{_title}_junk": (LEFT_OUT, content(_file, random.Random(0).randbytes(3000))),
        f"{_title}_pipe": (LEFT_OUT, instead(_file, os.mkfifo)),
        f"{_title}_socket": (LEFT_OUT, instead(_file, _socket)),
        f"{_title}_device": (LEFT_OUT, instead(_file, lambda path: path.symlink_to("/dev/zero"))),
        f"{_title}_folder": (LEFT_OUT, instead(_file, Path.mkdir)),
        f"{_title}_link_out": (LEFT_OUT, _link_out(_file)),
        f"{_title}_link_to_itself": (LEFT_OUT, instead(_file, lambda path: path.symlink_to(path.name))),
        f"{_title}_link_to_nothing": (LEFT_OUT, instead(_file, lambda path: path.symlink_to("nowhere"))),
    }
# One of each family, and those that once took the page down, hung it or filled the memory.
DIFFERENT = (
    "whole_number_of_400_digits", "whole_number_of_5000_digits", "values_that_overflow_in_sums", "not_finite",
    "texts_for_numbers", "objects_for_numbers", "negative_steps", "huge_steps", "largest_steps", "out_of_order",
    "each_row_twice", "torn_in_the_middle", "being_written", "deep_json", "names_10000", "zeros_after_a_power_cut",
    "hole_of_a_terabyte", "timestamps", "layers_of_objects", "layers_pipe", "plan_batch_0", "plan_batch_large",
    "plan_world_text", "plan_400_digits", "status_object", "status_script", "status_half_a_pair", "yaml_bomb",
    "yaml_itself", "yaml_python", "yaml_odd_keys", "model_script", "optimizer_long", "config_latin", "metrics_empty",
    "plan_junk", "config_pipe", "summary_device", "metrics_folder", "config_link_out", "plan_link_to_itself",
)  # fmt: skip


def make(root: Path, name: str) -> str:
    """A run with the damage of a kind; returns what is to become of it."""
    expected, damage = KINDS[name]
    damage(write_run(root / name, 64, num_rows=6))
    return expected


def mutate(folder: Path, seed: int) -> None:
    """One or two random mutations of the files of a healthy run, of whose effect nothing is known beforehand."""
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 2)):
        path = folder / draw.choice(FILES)
        if not path.is_file() or path.is_symlink():
            continue
        data = bytearray(path.read_bytes())
        kind = draw.choice(("cut", "flip", "insert", "swap", "repeat", "token", "kind"))
        at = draw.randrange(len(data) + 1)
        if kind == "cut":
            del data[at:]
        elif kind == "flip" and data:
            for _ in range(draw.randint(1, 20)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == "insert":
            data[at:at] = draw.randbytes(draw.randint(1, 200))
        elif kind == "swap":
            lines = bytes(data).split(b"\n")
            draw.shuffle(lines)
            data = bytearray(b"\n".join(lines))
        elif kind == "repeat":
            data *= draw.randint(2, 5)
        elif kind == "token":  # a number where one was, or something else
            odd = (
                "1" * 400,
                "-1",
                "1e999",
                "NaN",
                '"x"',
                "{}",
                "[]",
                "null",
                "true",
                "0",
                json.dumps(SCRIPT),
                "*a",
                "&a",
            )
            numbers = [place for place, byte in enumerate(data) if 48 <= byte <= 57]
            place = draw.choice(numbers or [0])
            data[place : place + 1] = draw.choice(odd).encode()
        else:
            path.unlink()
            draw.choice((os.mkfifo, Path.mkdir, lambda one: one.symlink_to("/dev/zero"), lambda one: None))(path)
            continue
        path.write_bytes(data)
