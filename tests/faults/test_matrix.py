from __future__ import annotations

import ast
from pathlib import Path

from tests.faults.matrix import MATRIX

ROOT = Path(__file__).resolve().parents[2]


def test_the_matrix_is_numbered_and_every_row_has_a_test_or_says_why_not():
    assert [row.number for row in MATRIX] == list(range(1, 61))
    assert [row.number for row in MATRIX if not row.tests and not row.not_met] == []


def test_every_test_that_the_matrix_names_exists():
    named = {test for row in MATRIX for test in row.tests}
    files = {ROOT / test.partition("::")[0] for test in named}
    existing = {
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in files
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert named - existing == set()


def test_every_test_of_a_fault_is_named_in_the_matrix():
    named = {test for row in MATRIX for test in row.tests}
    own = {
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in Path(__file__).parent.glob("test_*.py")
        if path.name != "test_matrix.py"
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert own - named == set()
