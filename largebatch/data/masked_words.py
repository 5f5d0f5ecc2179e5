"""Masked words: a random share of the tokens of a window is hidden, and is what the model predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

IGNORED_TARGET = -100
_HIDDEN, _RANDOM = 0.8, 0.1  # of the chosen tokens; the others stay


class MaskedWords(Dataset[tuple[Tensor, Tensor]]):
    """Windows of tokens for masked language models: inputs [T] with hidden tokens, targets [T], -100 elsewhere.

    Each token is chosen with probability `share`. Of the chosen ones 80 % become `mask_token`, 10 % a random token and
    10 % stay; all are to be predicted. Draws are those of torch's global generator, which a loader seeds by (seed,
    epoch, sample id): masks change in every epoch, are the same on any number of ranks, and the same in every
    evaluation. Sources: Devlin et al. 2019, "BERT", section 3.1; new masks for each epoch: Liu et al. 2019, "RoBERTa".
    There is no prediction of the next sentence.

    Args:
        dataset: map-style; the inputs of its items are windows of tokens, such as `token_stream`.
        vocab_size: tokens lie in [0, vocab_size).
        mask_token: stands for a hidden one.
        special_tokens: are never chosen, such as those between sentences.
        share: probability of a token to be chosen.

    Raises:
        ValueError: if a number is outside its range.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        vocab_size: int,
        mask_token: int,
        special_tokens: Sequence[int] = (),
        share: float = 0.15,
    ) -> None:
        if not 0 <= mask_token < vocab_size or not all(0 <= one < vocab_size for one in special_tokens):
            raise ValueError(
                f"mask_token={mask_token}, special_tokens={list(special_tokens)}: tokens lie in [0, {vocab_size})."
            )
        if not 0 < share <= 1:
            raise ValueError(f"share={share}: the probability of a token to be chosen, in (0, 1]. BERT has 0.15.")
        self._dataset, self._vocab_size, self._mask_token, self._share = dataset, vocab_size, mask_token, share
        self._special = torch.tensor(list(special_tokens), dtype=torch.int64)
        self.plan_notes = tuple(getattr(dataset, "plan_notes", ()))

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        tokens, _ = self._dataset[index]
        chosen = (torch.rand(tokens.shape) < self._share) & ~torch.isin(tokens, self._special)
        way, others = torch.rand(tokens.shape), torch.randint(self._vocab_size, tokens.shape)
        inputs = torch.where(chosen & (way < _HIDDEN), self._mask_token, tokens)
        inputs = torch.where(chosen & (way >= 1 - _RANDOM), others, inputs)
        return inputs, tokens.masked_fill(~chosen, IGNORED_TARGET)
