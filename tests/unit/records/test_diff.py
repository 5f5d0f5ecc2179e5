"""Two ledgers side by side: the comparison, and what the verb says and returns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from largebatch.__main__ import main
from largebatch.records.ledger import Comparison, Ledger, is_ledger_row, relative_difference
from largebatch.records.ledger import compare_ledgers as compare_columns


def row(step: int, **changed: Any) -> dict[str, Any]:
    values = {"step": step, "samples_seen": 24 * step, "ids": f"{step:064x}", "lr": 0.5, "loss": 2.0 / step}
    if step % 5 == 0:
        values["parameters"] = f"{step:064x}"
    values |= changed
    return {k: v.hex() if isinstance(v, float) else v for k, v in values.items()}


def rows(count: int = 12, **changed: dict[int, Any]) -> list[dict[str, Any]]:
    """`count` rows; `loss={7: 0.1}` gives step 7 another loss."""
    return [row(s, **{k: at[s] for k, at in changed.items() if s in at}) for s in range(1, count + 1)]


def compare_ledgers(first: list[Any], second: list[Any], **options: float) -> Comparison:
    return compare_columns(Ledger(first), Ledger(second), **options)


def write(path: Path, lines: list[Any]) -> str:
    path.mkdir()
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (path / "ledger.jsonl").write_text("".join(f"{text}\n" for text in texts))
    return str(path)


@pytest.fixture
def compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Exit code, stdout and stderr of the verb for two ledgers."""

    def run(first: list[Any], second: list[Any], *options: str) -> tuple[int, str, str]:
        code = main(["diff", write(tmp_path / "a", first), write(tmp_path / "b", second), *options])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(4.0, 5.0, 0.2), (-4.0, 4.0, 2.0), (0.0, -0.0, 0.0), (0.0, 1e-300, 1.0), (math.nan, math.nan, 0.0),
     (math.nan, 1.0, math.inf), (math.inf, math.inf, 0.0), (math.inf, 1.0, math.inf)],
)  # fmt: skip
def test_relative_difference(one, other, expected):
    assert relative_difference(one, other) == relative_difference(other, one) == expected


@pytest.mark.parametrize(
    ("changed", "step", "fields"),
    [
        ({"samples_seen": {3: 1}}, 3, ("samples_seen",)),
        ({"ids": {4: "f"}, "loss": {4: 0.1, 5: 0.1}}, 4, ("ids", "loss")),
        ({"lr": {6: 0.4}, "loss": {7: 0.1}}, 6, ("lr",)),
        ({"loss": {7: math.nextafter(2 / 7, 1)}}, 7, ("loss",)),
        ({"parameters": {5: "f", 10: "f"}, "loss": {6: 0.1}}, 5, ("parameters",)),
        ({"loss": {2: math.nan}}, 2, ("loss",)),
    ],
)
def test_the_first_step_and_its_cause_are_found(changed, step, fields):
    comparison = compare_ledgers(rows(), rows(**changed))
    assert comparison.first_divergence == (step, fields)
    assert compare_ledgers(rows(**changed), rows(**changed)).first_divergence is None


def test_within_a_tolerance_losses_are_equal_and_hashes_of_parameters_are_not_judged():
    second = rows(loss={7: 2 / 7 * (1 + 1e-6), 9: 2 / 9 * (1 + 1e-3)}, parameters={5: "f"})
    assert compare_ledgers(rows(), second).first_divergence == (5, ("parameters",))
    assert compare_ledgers(rows(), second, loss_tolerance=1e-5).first_divergence == (9, ("loss",))
    within = compare_ledgers(rows(), second, loss_tolerance=1e-2)
    assert within.first_divergence is None
    largest = {one.field: one.largest for one in within.fields}["loss"]
    assert largest == pytest.approx(1e-3, rel=1e-2)
    assert compare_ledgers(rows(), rows(loss={1: math.nan}), loss_tolerance=9.0).first_divergence == (1, ("loss",))
    assert compare_ledgers(rows(), rows(lr={1: 0.5000001}), loss_tolerance=9.0).first_divergence == (1, ("lr",))


def test_steps_that_one_lacks_are_told_and_the_last_of_two_rows_counts():
    first = [*rows(6), row(4, ids="x")]
    comparison = compare_ledgers(first, rows(8)[2:])
    found = (comparison.only_first, comparison.common_steps, comparison.only_second)
    assert [list(steps) for steps in found] == [[1, 2], [3, 4, 5, 6], [7, 8]]
    assert comparison.first_divergence == (4, ("ids",))


@pytest.mark.parametrize(
    "broken",
    [
        {"lr": "fast"},
        {"loss": None},
        {"ids": 3},
        {"step": "1"},
        {"parameters": 1},
        {"samples_seen": 1.5},
        {"step": -1},
        {"step": 10**400},
        {"loss": "0x1p99999"},
        {"ids": []},
    ],
)
def test_other_json_is_no_row_of_a_ledger(broken):
    assert is_ledger_row(row(5))
    assert not is_ledger_row(row(5) | broken)
    assert not is_ledger_row({"step": 1, "train/loss": 0.5})


def test_equal_ledgers_are_said_to_be_equal_bit_for_bit(compare):
    code, said, complaint = compare(rows(), rows())
    assert (code, complaint) == (0, "")
    assert "equal bit for bit over 12 steps, 1 to 12" in said
    assert "parameters: equal in all 2 rows" in said


def test_the_first_difference_is_shown_with_both_values_and_how_far_apart(compare):
    code, said, _ = compare(rows(), rows(loss={8: 0.2}, parameters={10: "beef"}))
    assert code == 1
    assert "first different at step 8: loss\n" in said
    assert f"  A loss: 0.25 ({(0.25).hex()})\n  B loss: 0.2 ({(0.2).hex()})\n  relative difference: 0.2\n" in said
    assert "sample ids: equal in all 12 rows" in said
    assert "learning rate: equal in all 12 rows" in said
    assert "loss: different in 1 of 12 rows, first at step 8, at most 0.2 relative" in said
    assert "parameters: different in 1 of 2 rows, first at step 10" in said


def test_a_tolerance_is_named_in_the_verdict(compare):
    code, said, _ = compare(rows(), rows(loss={8: 0.25000001}, parameters={10: "f"}), "--loss-tolerance", "1e-6")
    assert code == 0
    assert "equal with losses within 1e-06 over 12 steps" in said
    assert "first at step 10; not judged" in said


def test_ledgers_of_another_length_are_compared_over_what_they_share(compare):
    code, said, _ = compare(rows(12), rows(9))
    assert code == 0
    assert "only A has 3 steps, 10 to 12" in said
    assert "equal bit for bit over 9 steps, 1 to 9" in said


def test_torn_and_foreign_lines_are_left_out_and_told(compare):
    torn = json.dumps(row(13))[:40]
    code, said, _ = compare([*rows(), row(3), {"step": 14}, torn], rows())
    assert code == 0
    assert "torn lines left out: 15" in said
    assert "1 lines left out: they are no rows of a ledger" in said
    assert "1 steps are there twice: the last row counts" in said


def test_wrong_input_is_told_with_exit_code_two(compare, tmp_path, capsys):
    code, said, complaint = compare(rows(3), rows(9)[4:])
    assert (code, said) == (2, "")
    assert "no step in common: A has 3 steps, 1 to 3, B has 5 steps, 5 to 9" in complaint
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "ledger.jsonl").write_text('{"step":1,"train/loss":0.5}\n')
    for arguments, complaint in (
        ([str(tmp_path / "a"), str(tmp_path / "none")], "observers.ledger.enabled=true"),
        ([str(tmp_path / "a"), str(tmp_path / "metrics")], "has no row of a ledger"),
        ([str(tmp_path / "a")], "the following arguments are required: B"),
        ([str(tmp_path / "a"), str(tmp_path / "b"), "--loss-tolerance", "-1"], "0 or more"),
        ([str(tmp_path / "a"), str(tmp_path / "b"), "--loss-tolerance", "x"], "invalid"),
        ([str(tmp_path / "a"), str(tmp_path / "b"), "seed=1"], "unrecognized arguments: seed=1"),
    ):
        assert main(["diff", *arguments]) == 2, arguments
        said = capsys.readouterr()
        assert (said.out, complaint in said.err) == ("", True), said.err
    assert main(["diff", "--help"]) == 0
    assert "usage: largebatch diff" in capsys.readouterr().out
