"""Losses that couple the samples of a batch, such as contrastive ones.

The batch is part of their definition: summed over micro-batches they would be a different loss, with fewer negatives.
Training computes them over the whole global batch (`gradient.coupled_losses`), evaluation over fixed batches of its own
(`EvaluationObserver`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Anchors per block of the similarity matrix. A constant, so that the result is bitwise the same on any number of ranks.
_ANCHORS_AT_ONCE = 1024


class CoupledLoss(Protocol):
    """A `Loss` whose `loss_per_sample` depends on all samples of the call.

    The model's output for a sample is its representation. The sum of the losses may be any function of the
    representations of a batch; its split among the samples matters only in evaluation.

    Optional member:

    - `loss_of_rows(outputs, targets, rows)`: `loss_per_sample(outputs, targets)[rows]`, for a slice `rows`, at the cost
      of these samples alone. With it each rank computes the losses of its own samples, without it those of all.
    """

    @property
    def coupled(self) -> bool:
        """True; the training loop reads it."""

    @property
    def unit(self) -> str:
        """As for `Loss`."""

    @property
    def fixed_units(self) -> bool:
        """As for `Loss`."""

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Loss of each sample within the batch `outputs` [n, ...], `targets` [n, ...]; [n], differentiable.

        Samples come in the order of the global batch. Every rank makes the same call once per step, so it must not
        draw random numbers.
        """

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """As for `Loss`."""

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """As for `Loss`, within the batch."""


def is_coupled(loss: Any) -> bool:
    """Whether `loss` couples the samples of a batch, as its attribute `coupled` states."""
    return bool(getattr(loss, "coupled", False))


@dataclass(frozen=True)
class InfoNCE:
    """Contrastive loss of samples with two views: outputs [n, 2, d], one representation per view; targets unused.

    With s(a, b) the cosine similarity and t the temperature, a view a with the partner p has the loss
    -log(exp(s(a, p) / t) / sum_c exp(s(a, c) / t)). The loss of a sample is the mean over its two views.

    The candidates c depend on `negatives`:

    - "all": the 2n - 1 other views of the batch (NT-Xent: Chen et al. 2020, "A simple framework for contrastive
      learning", equation 1; their loss is the mean over samples).
    - "other_view": the n views of the partner's kind (Radford et al. 2021, "Learning transferable visual models from
      natural language supervision", figure 3: images against texts). Their learned temperature is a constant here.

    A single sample has no negatives: its loss is 0. A sample is correct if its second view is the one most similar to
    its first view among all second views of the batch.

    The full similarity matrix is never in memory: beside the representations of n samples, memory holds 1024 x 2n
    numbers. A batch of more than 1024 anchors recomputes the similarities in the backward pass.

    Attributes:
        temperature: t, above 0.
        negatives: "all" or "other_view".

    Raises:
        ValueError: if an attribute is outside its range or shapes do not fit.

    >>> InfoNCE(temperature=1.0).loss_per_sample(torch.ones(2, 2, 3), torch.zeros(2))  # all alike: log 3
    tensor([1.0986, 1.0986])
    """

    unit: ClassVar[str] = "sample"
    fixed_units: ClassVar[bool] = True
    coupled: ClassVar[bool] = True
    temperature: float = 0.1
    negatives: Literal["all", "other_view"] = "all"

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature={self.temperature!r}: must be finite and above 0. Usual: 0.05 to 0.5.")
        if self.negatives not in ("all", "other_view"):
            raise ValueError(
                f"negatives={self.negatives!r}: choose 'all' (both views of every other sample) or 'other_view'."
            )

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean loss of the two views of each sample among all samples of the call, [n]."""
        return self.loss_of_rows(outputs, targets, slice(0, len(targets)))

    def loss_of_rows(self, outputs: Any, targets: Tensor, rows: slice) -> Tensor:
        """The same for the samples `rows`, [m]: m / n of the work."""
        first, second = self._views(outputs, targets)
        total = len(first)
        places = torch.arange(total, device=first.device)[rows]
        if self.negatives == "other_view":
            of_first = self._losses(first[rows], second, places)
            of_second = self._losses(second[rows], first, places)
        else:
            views = torch.cat([first, second])
            # Of all samples the views themselves: their gradient is added up in one order, whoever asks.
            anchors = views if len(places) == total else torch.cat([first[rows], second[rows]])
            own = torch.cat([places, places + total])
            partners = torch.cat([places + total, places])
            of_first, of_second = self._losses(anchors, views, partners, own).chunk(2)
        return (of_first + of_second) / 2

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Ones, int64 [n]."""
        return torch.ones(len(targets), dtype=torch.int64, device=targets.device)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """1 where the first view is most similar to its own second view, else 0, int64 [n]."""
        first, second = self._views(outputs, targets)
        found = torch.cat([(part @ second.T).argmax(dim=1) for part in first.split(_ANCHORS_AT_ONCE)])
        return (found == torch.arange(len(first), device=first.device)).long()

    def _views(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """All first and all second views, [n, d] each, normalised to length 1."""
        shape = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if not isinstance(outputs, Tensor) or outputs.dim() != 3 or outputs.shape[:2] != (len(targets), 2):
            raise ValueError(
                f"InfoNCE got outputs {shape} and {len(targets)} targets: it needs representations [n, 2, d] of two "
                "views per sample. Use inputs [n, 2, ...] with largebatch.models.TwoViews, or change the model."
            )
        wide = outputs if outputs.dtype == torch.float64 else outputs.float()
        first, second = F.normalize(wide, dim=-1).unbind(dim=1)
        return first, second

    def _losses(self, anchors: Tensor, candidates: Tensor, partners: Tensor, own: Tensor | None = None) -> Tensor:
        """Loss of each anchor, [m]."""
        blocks = [slice(first, first + _ANCHORS_AT_ONCE) for first in range(0, len(anchors), _ANCHORS_AT_ONCE)]
        losses = []
        for block in blocks:
            arguments = (
                anchors[block] / self.temperature,
                candidates,
                partners[block],
                None if own is None else own[block],
            )
            if len(blocks) == 1:
                losses.append(_anchor_losses(*arguments))
            else:
                losses.append(checkpoint(_anchor_losses, *arguments, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(losses)


def _anchor_losses(anchors: Tensor, candidates: Tensor, partners: Tensor, own: Tensor | None) -> Tensor:
    """Cross-entropy of each anchor's partner among the candidates, without the anchor itself."""
    logits = anchors @ candidates.T
    if own is not None:
        logits = logits.scatter(1, own[:, None], -math.inf)
    return F.cross_entropy(logits, partners, reduction="none")
