"""Decoder-only transformer for language modelling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.models.arguments import require_counts, require_dropout


class GPT(nn.Module):
    """GPT-2 (Radford et al. 2019): tokens [n, T] -> logits [n, T, vocab_size]; the logits at t see tokens 0..t only.

    Pre-norm blocks, learned position embeddings, GELU (tanh form), biases everywhere. Initial weights: matrices and
    embeddings N(0, 0.02^2); the two projections of each block that end on the residual stream N(0, (0.02 / sqrt(2
    num_layers))^2), so that the variance of the stream does not grow with depth; biases 0, layer norms 1 and 0. With
    GPT-2's sizes (50257, 1024, 12 layers, 12 heads, width 768) it has GPT-2's 124,439,808 parameters.

    Args:
        vocab_size: number of different tokens.
        context_length: largest T.
        num_layers: blocks.
        num_heads: attention heads per block, a divisor of `width`.
        width: numbers per token on the residual stream.
        dropout: probability, while training, on the embeddings, attention weights and both residual branches.
        tie_embeddings: use the token embedding as output matrix, too (Press and Wolf 2017). It is one parameter with
            one name, so optimizers, norms and checkpoints count it once.

    Raises:
        ValueError: if a count is below 1, `width` is not a multiple of `num_heads`, `dropout` is outside [0, 1), or if
            a sequence is longer than `context_length`.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        *,
        num_layers: int,
        num_heads: int,
        width: int,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
    ) -> None:
        super().__init__()
        require_counts(
            vocab_size=vocab_size,
            context_length=context_length,
            num_layers=num_layers,
            num_heads=num_heads,
            width=width,
        )
        require_dropout(dropout)
        if width % num_heads:
            nearest = [str(size * num_heads) for size in (width // num_heads, width // num_heads + 1) if size > 0]
            raise ValueError(
                f"width={width} is not a multiple of num_heads={num_heads}: every head gets width/num_heads numbers. "
                f"Nearest that work: {', '.join(nearest)}."
            )
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(context_length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(width, num_heads, dropout) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(width)
        self.head = None if tie_embeddings else nn.Linear(width, vocab_size, bias=False)
        self._initialize()

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Logits [n, T, vocab_size] of `input_ids` [n, T], integers below `vocab_size`.

        With `position_ids` [n, T] documents are packed: each begins at position 0, and its tokens see no other one's.
        """
        length = input_ids.shape[-1]
        if length > self.context_length:
            raise ValueError(
                f"A sequence of {length} tokens, context_length={self.context_length}: positions beyond the "
                f"context have no embedding. Cut the sequences, or build the model with context_length={length}."
            )
        positions = torch.arange(length, device=input_ids.device) if position_ids is None else position_ids
        visible = None if position_ids is None else _within_documents(position_ids)
        stream = self.dropout(self.token_embedding(input_ids) + self.position_embedding(positions))
        for block in self.blocks:
            stream = block(stream, visible)
        stream = self.final_norm(stream)
        return F.linear(stream, self.token_embedding.weight) if self.head is None else self.head(stream)

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            for projection in (block.attention_out, block.feed_out):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * len(self.blocks)))


class TransformerBlock(nn.Module):
    """Causal self-attention, then a feed-forward network of 4 `width`, each added to the stream [n, T, width]."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, 4 * width)
        self.feed_out = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, stream: Tensor, visible: Tensor | None = None) -> Tensor:
        """[n, T, width] -> [n, T, width]."""
        stream = stream + self.dropout(self.attend(self.attention_norm(stream), visible))
        feed = self.feed_out(F.gelu(self.feed_in(self.feed_norm(stream)), approximate="tanh"))
        return stream + self.dropout(feed)

    def attend(self, normed: Tensor, visible: Tensor | None = None) -> Tensor:
        """Attention of all heads on the normed stream [n, T, width]; same shape, without the residual sum.

        Causal, or to the tokens that are `visible`, [n, 1, T, T].
        """
        num_samples, length, width = normed.shape
        query, key, value = (
            part.view(num_samples, length, self.num_heads, width // self.num_heads).transpose(1, 2)
            for part in self.attention_in(normed).split(width, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visible,
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=visible is None,
        )
        return self.attention_out(mixed.transpose(1, 2).reshape(num_samples, length, width))


def _within_documents(position_ids: Tensor) -> Tensor:
    """Which tokens each one sees: itself and those before it in its document, bool [n, 1, T, T]."""
    documents = (position_ids == 0).cumsum(dim=-1)
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same.tril()
