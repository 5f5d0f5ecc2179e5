from __future__ import annotations

from pathlib import Path

from tests.faults.matrix import MATRIX
from tests.named_tests import functions_of, without_test


def test_the_matrix_is_numbered_and_every_row_has_a_test_or_says_why_not():
    assert [row.number for row in MATRIX] == list(range(1, len(MATRIX) + 1))
    assert [row.number for row in MATRIX if not row.tests and not row.not_met] == []


def test_every_test_that_the_matrix_names_exists():
    assert without_test(test for row in MATRIX for test in row.tests) == set()


def test_every_test_of_a_fault_is_named_in_the_matrix():
    named = {test for row in MATRIX for test in row.tests}
    files = [path for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_matrix.py"]
    own = {test for path in files for test in functions_of(path) if "::test_" in test}
    assert own - named == set()
