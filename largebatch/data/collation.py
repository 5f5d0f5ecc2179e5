"""A data set whose samples somebody else's function makes a batch of, such as padding to the longest of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from largebatch.batch.random_keys import stream_key
from largebatch.data.errors import DataError
from largebatch.distributed.generators import seed_generators
from largebatch.losses import LabelRule


class Collated(Dataset[Any]):
    """`dataset` with a `collate_fn`, as a torch DataLoader takes it: a list of raw items -> a batch.

    Args:
        dataset: map-style; its items reach `collate_fn` as they are, text and lists included.
        collate_fn: returns (inputs, targets) or a dict with one target key, each with as many rows as there are items.
        rule: the valid labels of a batch; None: they are not checked.
    """

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Any], rule: LabelRule | None = None) -> None:
        self._dataset, self._collate_fn, self.rule = dataset, collate_fn, rule

    def checked(self, rule: LabelRule | None) -> Collated:
        """The same with a check of labels, which may not exist before the batch is made."""
        return Collated(self._dataset, self._collate_fn, rule)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]

    def collated(self, items: Sequence[Any]) -> Any:
        """A batch of raw items; mappings such as transformers' `BatchEncoding` become dicts."""
        batch = self._collate_fn(list(items))
        return dict(batch) if isinstance(batch, Mapping) else batch


def collated(dataset: Any, items: Sequence[Any], requests: Sequence[tuple[int, int]], *, seed: int, stream: str) -> Any:
    """A batch of `items`, made by the set's own function.

    What it draws, such as masks of tokens, is keyed by the first sample of the micro-batch.

    Args:
        dataset: a `Collated`, or one behind it.
        items: raw.
        requests: (epoch, id) of each.
        seed: of the run.
        stream: name of the random stream of the items.

    Raises:
        DataError: if the function fails; with the samples.
    """
    ids = [sample for _, sample in requests]
    seed_generators(stream_key(seed, f"{stream} collate", *requests[0]))
    try:
        return dataset.collated(items)
    except Exception as error:
        raise DataError(
            f"data.collate_fn failed on samples {', '.join(map(str, ids[:8]))}{', ...' if ids[8:] else ''}: "
            f"{type(error).__name__}: {error}"
        ) from error


def require_batch(dataset: Any, inputs: Any, targets: Any, ids: Sequence[int]) -> None:
    """Raise DataError unless a batch has a row for each sample, and valid labels."""
    named = inputs if isinstance(inputs, dict) else {"inputs": inputs}
    for name, part in {**named, "targets": targets}.items():
        if part.ndim == 0 or len(part) != len(ids):
            raise DataError(
                f"data.collate_fn made {name} of shape {list(part.shape)} from {len(ids)} samples, the first of them "
                f"{ids[0]}: every part of a batch has one row per sample. Return one for each item, in their order."
            )
    rule = dataset.rule
    for sample, target in zip(ids, targets, strict=True) if rule is not None else ():
        if problem := rule.problem(target):
            raise DataError(f"Sample {sample} cannot be loaded: ValueError: {problem}")
