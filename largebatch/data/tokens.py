"""Streams of tokens as windows for next-token prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from largebatch.data.array import Int64Array
from largebatch.data.errors import DataError
from largebatch.data.token_files import Tokens

MASKED = -100
"""The label that does not count, as in torch and transformers."""


class TokenWindows(Dataset[tuple[Any, Tensor]]):
    """Non-overlapping windows over streams of tokens; targets are the inputs shifted by one.

    Window i has the inputs `tokens[i T : (i + 1) T]` and the targets `tokens[i T + 1 : (i + 1) T + 1]`, T the
    context length: every token but the first is a target at most once. A remainder shorter than T + 1 is not used.
    Several streams are cut separately, in order: no window crosses from one to the next.

    Args:
        tokens: integers [L], or several such arrays. They may be memory maps: only fetched windows are read.
        context_length: T, tokens per window.
        vocab_size: tokens lie in [0, vocab_size).
        characters: for character tokens, the vocabulary: token i stands for characters[i].
        plan_notes: notes that the plan prints before training.
        end_of_document: the token that ends each of the documents in a stream; None: they are one text.
        masks_starts: whether the first token of a document, which nothing before it tells, is no target: behind each
            end its label is -100.
        separates: whether documents within a window do not see each other: the inputs are then a dict of `input_ids`
            and `position_ids`, which begin anew with each document; see `GPT`.

    Raises:
        ValueError: if a count is below 1, `end_of_document` is no token, or one of these options needs another.
        DataError: if no stream is long enough for a window; from `fetch`, if a token lies outside the vocabulary.

    >>> windows = TokenWindows(np.arange(8), context_length=3, vocab_size=8)
    >>> windows.fetch(np.array([1, 0]))
    (tensor([[3, 4, 5],
            [0, 1, 2]]), tensor([[4, 5, 6],
            [1, 2, 3]]))
    """

    def __init__(
        self,
        tokens: Tokens | Sequence[Tokens],
        *,
        context_length: int,
        vocab_size: int,
        characters: str | None = None,
        plan_notes: Sequence[str] = (),
        end_of_document: int | None = None,
        masks_starts: bool = False,
        separates: bool = False,
    ) -> None:
        if context_length < 1:
            raise ValueError(f"context_length={context_length}: a window needs at least 1 token.")
        if vocab_size < 1:
            raise ValueError(f"vocab_size={vocab_size}: a vocabulary needs at least 1 token.")
        _check_documents(end_of_document, vocab_size, masks_starts=masks_starts, separates=separates)
        self._end, self._masks_starts, self.separates = end_of_document, masks_starts, separates
        self._streams = [tokens] if isinstance(tokens, np.ndarray) else list(tokens)
        longest = max(map(len, self._streams), default=0)
        if longest <= context_length:
            raise DataError(
                f"{longest} tokens are too few for context_length={context_length}: a window and its shifted targets "
                f"take {context_length + 1}. Use a context of at most {max(longest - 1, 0)}, or more text."
            )
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.characters = characters
        self.plan_notes = tuple(plan_notes)
        # Cumulative number of windows: window i is in the first stream whose entry is above i.
        self._ends = np.cumsum([max(len(stream) - 1, 0) // context_length for stream in self._streams])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def label_range(self) -> tuple[int, int] | None:
        """Smallest and largest token that may occur; None if some targets are masked."""
        return None if self._masks_starts else (0, self.vocab_size - 1)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        inputs, targets = self.fetch(np.array([index]))
        first = {name: part[0] for name, part in inputs.items()} if isinstance(inputs, dict) else inputs[0]
        return first, targets[0]

    def fetch(self, ids: Int64Array) -> tuple[Any, Tensor]:
        """Inputs and targets of the windows `ids`, int64 [n, context_length] each."""
        if ids.size and not (ids.min() >= 0 and ids.max() < len(self)):
            raise IndexError(f"windows {ids.min()} to {ids.max()} of {len(self)}")
        windows = self._windows(ids)
        if windows.size and not (windows.min() >= 0 and windows.max() < self.vocab_size):
            row = int(np.flatnonzero(((windows < 0) | (windows >= self.vocab_size)).any(axis=1))[0])
            raise DataError(
                f"window {ids[row]}: tokens from {windows[row].min()} to {windows[row].max()}, outside "
                f"[0, {self.vocab_size}). Pass the vocab_size of the tokenizer that wrote the file."
            )
        pairs = torch.from_numpy(windows)
        inputs, targets = pairs[:, :-1].contiguous(), pairs[:, 1:].contiguous()
        if self._end is None:
            return inputs, targets
        ends = inputs == self._end
        if self._masks_starts:
            targets[ends] = MASKED
        return {"input_ids": inputs, "position_ids": _positions(ends)} if self.separates else inputs, targets

    def _windows(self, ids: Int64Array) -> npt.NDArray[np.int64]:
        """int64 [n, context_length + 1]."""
        inside = np.arange(self.context_length + 1)
        if len(self._streams) == 1:
            return self._streams[0][ids[:, None] * self.context_length + inside].astype(np.int64)
        windows = np.empty((len(ids), len(inside)), dtype=np.int64)
        streams = np.searchsorted(self._ends, ids, side="right")
        for number in np.unique(streams):
            rows = np.flatnonzero(streams == number)
            first = self._ends[number - 1] if number else 0
            windows[rows] = self._streams[number][(ids[rows] - first)[:, None] * self.context_length + inside]
        return windows


def _check_documents(end: int | None, vocab_size: int, *, masks_starts: bool, separates: bool) -> None:
    if end is None and (masks_starts or separates):
        raise ValueError(
            f"masks_starts={masks_starts}, separates={separates}: documents are told apart by the token that ends each "
            "one. Name it: end_of_document."
        )
    if end is not None and not (masks_starts or separates):
        raise ValueError(
            f"end_of_document={end} has no effect without masks_starts (the loss) or separates (attention and "
            "positions). Set one of them, or remove it."
        )
    if end is not None and not 0 <= end < vocab_size:
        raise ValueError(f"end_of_document={end}: is none of the {vocab_size} tokens, 0 to {vocab_size - 1}.")


def _positions(ends: Tensor) -> Tensor:
    """Position of each token in its document, which begins behind an end or at the start of the window; int64 [n, T].

    >>> _positions(torch.tensor([[False, True, False, False, True, True, False]]))
    tensor([[0, 1, 0, 1, 2, 0, 0]])
    """
    places = torch.arange(ends.shape[1]).expand(ends.shape)
    starts = torch.zeros_like(places)
    starts[:, 1:] = torch.where(ends[:, :-1], places[:, 1:], 0)
    return places - starts.cummax(dim=1).values
