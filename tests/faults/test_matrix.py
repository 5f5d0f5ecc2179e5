"""Every row of the matrix has a test, every test of a fault has a row, and the table of README.md is theirs."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults.table import README, matrix
from tests.marked import functions_in, marks


def test_a_row_says_once_what_must_come_of_its_fault_and_no_number_is_left_out():
    described = [mark.arguments[0] for mark in marks("fault") if len(mark.arguments) == 3]
    assert sorted(described) == list(range(1, len(described) + 1))
    assert {mark.arguments[0] for mark in marks("fault")} == set(described)


def test_the_table_has_the_rows_of_the_marks():
    written = re.findall(r"^\| (\d+) \| (.*?) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert written == [(str(row.number), f"{row.fault}: {row.outcome}") for row in matrix()]


def test_every_test_of_this_folder_has_a_row():
    own = {test for test in functions_in(Path(__file__).parent) if not test.startswith("tests/faults/test_matrix.py")}
    assert own - {mark.test for mark in marks("fault")} == set()
