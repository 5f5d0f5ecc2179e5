from __future__ import annotations

from tests.named_tests import without_test
from tests.unit.bad_inputs import BAD_INPUTS


def test_the_list_is_numbered_and_every_row_has_a_test_or_says_why_not():
    assert [row.number for row in BAD_INPUTS] == list(range(1, 78))
    silent = [row.number for row in BAD_INPUTS if not (row.tests or row.nothing_to_refuse or row.not_met)]
    assert silent == []


def test_every_test_that_the_list_names_exists():
    assert without_test(test for row in BAD_INPUTS for test in row.tests) == set()
