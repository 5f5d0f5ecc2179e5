"""Whether a model keeps packed documents apart: one that ignores the request trains another model, without a word."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from largebatch.data import MicroBatchData
from largebatch.data.subset import innermost
from largebatch.distributed.generators import preserved_generators
from largebatch.gradient.accumulation import forward
from largebatch.losses.protocol import prediction
from largebatch.models.modes import evaluating
from largebatch.run.checks.dry_run.samples import as_given

_ROUNDING = 1e-5  # of the largest score; what is masked has a weight of exactly 0


def require_separation(model: nn.Module, dataset: Any, probed: MicroBatchData, precision: str) -> None:
    """Refuse a model in which the scores of a document change with the document before it, if the set separates them.

    Args:
        model: in any mode; stays as it is.
        dataset: the training set.
        probed: some of its samples.
        precision: number format of the run.

    Raises:
        ValueError: with the change.
    """
    if not getattr(innermost(dataset), "separates", False):
        return
    assert isinstance(probed.inputs, dict)
    ids = probed.inputs["input_ids"][:1]
    half = ids.shape[1] // 2
    # Two documents of half a window each; the first one of other tokens, in another order.
    others = torch.cat([probed.inputs["input_ids"][-1:, :half].flip(1), ids[:, half:]], dim=1)
    if torch.equal(ids, others):
        return
    places = torch.arange(ids.shape[1])
    positions = torch.where(places < half, places, places - half)[None]
    first, second = (_scores(model, {"input_ids": one, "position_ids": positions}, precision) for one in (ids, others))
    change, largest = (first - second)[:, half:].abs().max().item(), first.abs().max().item()
    if change > _ROUNDING * largest:
        cached = getattr(getattr(model, "config", None), "use_cache", False)
        remedy = (
            "transformers ignores packed documents where it keeps a cache: +model.use_cache=false."
            if cached
            else "Have it take `position_ids`, which begin anew with each document, as `largebatch.models.GPT` does, "
            "or set data.train.separates=false."
        )
        raise ValueError(
            f"data.train.separates=true, and the scores of a document change by {change:.2g}, of {largest:.2g} at "
            f"most, with the document before it: {type(model).__name__} does not keep them apart. {remedy}"
        )


def _scores(model: nn.Module, inputs: dict[str, Tensor], precision: str) -> Tensor:
    with preserved_generators(), torch.no_grad(), evaluating(model):
        return prediction(forward(model, as_given(inputs, model, precision)))
