"""A data set whose labels are checked whenever a sample is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from largebatch.data.array import Int64Array
from largebatch.data.collation import Collated
from largebatch.data.samples import TARGET_KEYS, as_sample
from largebatch.data.stored import stored_form
from largebatch.losses import LabelRule


class CheckedLabels(Dataset[Any]):
    """`dataset`, in which a sample with an invalid label fails to load, as an unreadable one does.

    So training, evaluation and measurements report or skip it with its id, label and range. On a GPU the label would
    otherwise fail an anonymous assertion inside a kernel.

    Args:
        dataset: map-style, or in memory.
        rule: the valid labels.
    """

    def __init__(self, dataset: Any, rule: LabelRule) -> None:
        self._dataset, self._rule = dataset, rule
        if hasattr(dataset, "fetch"):
            self.fetch = self._fetch
        if hasattr(dataset, "clean"):
            self.clean = CheckedLabels(dataset.clean, rule)

    def stored_form(self) -> tuple[Any, Any]:
        """See `largebatch.data.stored`."""
        stored, complete = stored_form(self._dataset)
        return CheckedLabels(stored, self._rule), complete

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        item = as_sample(self._dataset[index])
        # A malformed item is reported by the collation.
        label = _label_of(item)
        if label is not None:
            self._require(torch.as_tensor(label))
        return item

    def _fetch(self, ids: Int64Array) -> tuple[Any, Tensor]:
        inputs, targets = self._dataset.fetch(ids)
        self._require(targets)
        return inputs, targets

    def _require(self, targets: Tensor) -> None:
        if problem := self._rule.problem(targets):
            raise ValueError(problem)


def with_checked_labels(dataset: Any, rule: LabelRule | None) -> Any:
    """`dataset` with a label check per sample, unless its `label_range` has already been compared with the rule."""
    if isinstance(dataset, Collated):
        return dataset.checked(rule)
    is_known = getattr(dataset, "label_range", None) is not None
    return dataset if rule is None or is_known else CheckedLabels(dataset, rule)


def _label_of(item: Any) -> Any:
    if isinstance(item, dict):
        return next((item[key] for key in TARGET_KEYS if key in item), None)
    return item[1] if isinstance(item, (tuple, list)) and len(item) == 2 else None
