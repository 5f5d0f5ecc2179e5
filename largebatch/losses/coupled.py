"""Losses in which the samples of a batch depend on each other, such as contrastive ones.

The batch they are taken over is part of their definition: cut into micro-batches and added up they would be another
loss, with fewer negatives. Training takes them over the whole global batch (`gradient.coupled_losses`), evaluation over
batches of their own (`EvaluationObserver`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Anchors whose similarities to the whole batch are in memory at a time. A constant: bits must not depend on the ranks.
_ANCHORS_AT_ONCE = 1024


class CoupledLoss(Protocol):
    """A `Loss` whose `loss_per_sample` depends on all samples of the call.

    What the model returns for a sample is its representation. The sum of the losses may be any function of the
    representations of a batch; how it is shared among the samples only shows in evaluation.
    """

    @property
    def coupled(self) -> bool:
        """True: this is what tells the training loop."""

    @property
    def unit(self) -> str:
        """As for `Loss`."""

    @property
    def fixed_units(self) -> bool:
        """As for `Loss`."""

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Loss of each sample within the batch `outputs` [n, ...], `targets` [n, ...]; [n], differentiable.

        The order of the samples is that of the global batch. Called once per step, on every rank alike, so it must
        draw no random numbers.
        """

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """As for `Loss`."""

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """As for `Loss`, within the batch."""


def is_coupled(loss: Any) -> bool:
    """Whether the samples of a batch depend on each other in `loss`, as it says by `coupled = True`."""
    return bool(getattr(loss, "coupled", False))


@dataclass(frozen=True)
class InfoNCE:
    """Contrastive loss of samples with two views: outputs [n, 2, d], one representation per view; targets unused.

    With s(a, b) the cosine of two representations and t the temperature, a view a with the partner p has the loss
    -log(exp(s(a, p) / t) / sum_c exp(s(a, c) / t)). A sample's loss is the mean of those of its two views.

    The candidates c are with negatives="all" the 2n - 1 other views of the batch (NT-Xent: Chen et al. 2020, "A simple
    framework for contrastive learning", equation 1; their loss is the mean over samples), with "other_view" the n views
    of the partner's kind (Radford et al. 2021, "Learning transferable visual models from natural language supervision",
    figure 3: images against texts; their learned temperature is a constant here). One sample alone has no negatives:
    its loss is 0.

    A sample is correct if, among the second views of the batch, its own is the most similar to its first view.

    The similarities of the whole batch are never in memory at once: beside the representations of n samples, memory
    grows by 1024 x 2n numbers, and a larger batch computes them again in the backward pass.

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
            raise ValueError(f"temperature={self.temperature!r}: a finite number above 0. Usual: 0.05 to 0.5.")
        if self.negatives not in ("all", "other_view"):
            raise ValueError(
                f"negatives={self.negatives!r}: choose 'all' (both views of every other sample) or 'other_view'."
            )

    def loss_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean loss of the two views of each sample among all samples of the call, [n]."""
        first, second = self._views(outputs, targets)
        places = torch.arange(len(first), device=first.device)
        if self.negatives == "other_view":
            of_first = self._losses(first, second, places)
            of_second = self._losses(second, first, places)
        else:
            views = torch.cat([first, second])
            own = torch.cat([places, places + len(places)])
            partners = torch.cat([places + len(places), places])
            of_first, of_second = self._losses(views, views, partners, own).chunk(2)
        return (of_first + of_second) / 2

    def units_per_sample(self, targets: Tensor) -> Tensor:
        """Ones, int64 [n]."""
        return torch.ones(len(targets), dtype=torch.int64, device=targets.device)

    def correct_per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """1 where the first view finds its partner among all second views, else 0, int64 [n]."""
        first, second = self._views(outputs, targets)
        found = torch.cat([(part @ second.T).argmax(dim=1) for part in first.split(_ANCHORS_AT_ONCE)])
        return (found == torch.arange(len(first), device=first.device)).long()

    def _views(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """All first and all second views, [n, d] each, of length 1."""
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
        blocks = torch.arange(len(anchors)).split(_ANCHORS_AT_ONCE)
        losses = []
        for block in (slice(int(places[0]), int(places[-1]) + 1) for places in blocks):
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
