"""A label that cannot be scored is told where its sample is loaded, in whatever form the data set gives it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from largebatch.data import ArrayDataset, CheckedLabels, DataError, evaluation_batches, with_checked_labels
from largebatch.losses import LabelRule

RULE = LabelRule(3, ignore_index=-100)


class Items:
    """Four samples, of which number 2 has the label 4."""

    def __init__(self, form: Any) -> None:
        self.form = form

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.form([0, -100, 4, 3][index])


FORMS = {
    "int": lambda label: (torch.ones(2), label),
    "numpy": lambda label: (torch.ones(2), np.int32(label)),
    "tensor": lambda label: [torch.ones(2), torch.tensor(label)],
    "pixels": lambda label: (torch.ones(2), torch.tensor([[0, label]])),
    "dict": lambda label: {"pixel_values": torch.ones(2), "labels": torch.tensor(label)},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_label_out_of_range_stops_naming_its_sample_and_is_skipped_where_bad_samples_are(form: Any) -> None:
    data = with_checked_labels(Items(form), RULE)
    ids = np.arange(4)
    with pytest.raises(DataError, match=r"Sample 2 cannot be loaded: .*the label 4 is none of the 4 classes, 0 to 3"):
        next(evaluation_batches(data, ids, micro_batch_size=4))
    (batch,) = evaluation_batches(data, ids, micro_batch_size=4, skips=True)
    assert batch.ids.tolist() == [0, 1, 3]
    assert "the label 4" in batch.skipped[0][1]


def test_what_is_known_as_a_whole_or_has_no_rule_is_not_looked_at() -> None:
    known = ArrayDataset(torch.zeros(2, 1), torch.tensor([0, 1]))
    folder = SimpleNamespace(label_range=(0, 3))
    for data, rule in ((known, RULE), (folder, RULE), (Items(FORMS["int"]), None)):
        assert with_checked_labels(data, rule) is data
    assert isinstance(with_checked_labels(SimpleNamespace(label_range=None), RULE), CheckedLabels)
    # What is no item is for others to tell.
    assert with_checked_labels(Items(lambda label: (1, label, 2)), RULE)[2] == (1, 4, 2)


def test_one_label_with_a_fraction_among_class_numbers_is_named():
    assert RULE.problem(torch.tensor(2.0)) == (
        "the label 2.0 is float32: class numbers are integers. Convert it in the data set."
    )
    assert RULE.problem(torch.tensor([0.25, 0.75, 0.0])) is None, "class probabilities"
