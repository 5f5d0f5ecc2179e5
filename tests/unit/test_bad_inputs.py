from __future__ import annotations

import ast
from pathlib import Path

from tests.unit.bad_inputs import BAD_INPUTS

ROOT = Path(__file__).resolve().parents[2]


def test_the_list_is_numbered_and_every_row_has_a_test_or_says_why_not():
    assert [row.number for row in BAD_INPUTS] == list(range(1, 72))
    silent = [row.number for row in BAD_INPUTS if not (row.tests or row.nothing_to_refuse or row.not_met)]
    assert silent == []


def test_every_test_that_the_list_names_exists():
    named = {test for row in BAD_INPUTS for test in row.tests}
    files = {ROOT / test.partition("::")[0] for test in named}
    existing = {
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in files
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert named - existing == set()
