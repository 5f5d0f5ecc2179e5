"""Decide whether token labels equal the inputs and must be shifted, so that each position predicts the next token."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.losses.cross_entropy import NextToken
from largebatch.losses.protocol import Loss
from largebatch.models.modes import evaluating

_NO_LABEL = -(2**31)
_CLOSE = 1e-3  # relative difference of two losses: the model computes its own in the type of its weights


def with_shift(loss: Loss, model: nn.Module, inputs: Any, targets: Tensor) -> Loss:
    """`loss` with `shift` decided, if it is a `NextToken` with shift=None; any other loss unchanged.

    Causal models of transformers take labels that equal the input ids, and shift them. Masked models of transformers
    and the data sets of this package place each label at the position that predicts it. The samples decide first:
    labels that are the inputs moved by one are already shifted. Otherwise the model's own loss of one sample, if it
    computes one, shows whether it shifts labels. A model that would learn to copy its inputs is refused.

    Args:
        loss: the loss of the run.
        model: the model, on the CPU; its mode is restored.
        inputs: inputs of some samples; one sample is passed through the model.
        targets: targets of these samples.

    Raises:
        ValueError: if labels equal the inputs and nothing shifts them, or samples and model do not decide it.
    """
    if targets.dim() != 2 or targets.shape[1] < 2:
        return loss
    if not isinstance(loss, NextToken):
        _require_no_copier(loss, inputs, targets)
        return loss
    if loss.shift is not None:
        return loss
    relation = _relation(inputs, targets, loss.ignore_index)
    # Ask the model even if the labels are already shifted: its own loss may contain further terms.
    asked = F.pad(targets[:, :-1], (1, 0), value=loss.ignore_index) if relation == "next" else targets
    shifts = _model_shifts(model, inputs, asked, loss.ignore_index)
    if relation == "next":
        return dataclasses.replace(loss, shift=False)
    if relation == "same" and not shifts:
        raise ValueError(
            f"the labels of {len(targets)} samples equal the inputs at every position that counts, and "
            f"{_describe_shift(model, shifts)}: it would learn to copy its input token. To predict the next token, "
            "shift in the data set (inputs tokens[:-1], labels tokens[1:]) or set loss.shift=true. To reproduce the "
            "inputs, set loss.shift=false."
        )
    if shifts and relation is None:
        raise ValueError(
            f"{type(model).__name__} shifts its labels by one, but the labels of {len(targets)} samples are neither "
            "the inputs nor the inputs moved by one. Set loss.shift=true if a label is at the position of its token "
            "in the inputs (transformers' convention), loss.shift=false if it is at the position that predicts it."
        )
    return dataclasses.replace(loss, shift=bool(shifts))


def _require_no_copier(loss: Loss, inputs: Any, targets: Tensor) -> None:
    """Refuse labels that equal the inputs, for a loss without `shift`."""
    masked = getattr(loss, "ignore_index", None)
    if loss.unit == "label" and _relation(inputs, targets, _NO_LABEL if masked is None else masked) == "same":
        raise ValueError(
            f"the labels of {len(targets)} samples equal the inputs at every position that counts: the model would "
            "learn to copy its inputs. To predict the next token, shift in the data set (inputs tokens[:-1], labels "
            "tokens[1:]) or choose loss=next_token with outputs [n, T, V]. To reproduce the inputs, choose "
            "loss=per_token."
        )


def _relation(inputs: Any, targets: Tensor, ignore_index: int) -> str | None:
    """Whether the labels that count are the inputs ("same"), or the inputs moved by one ("next")."""
    valid = targets != ignore_index
    if targets[valid].unique().numel() < 2:
        return None  # all tokens equal: the two cases look the same
    parts = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    for part in parts:
        if part.shape != targets.shape or part.is_floating_point():
            continue
        same = bool((part == targets)[valid].all())
        follows = valid[:, :-1]
        moved = bool(follows.any()) and bool((part[:, 1:] == targets[:, :-1])[follows].all())
        if same != moved:
            return "same" if same else "next"
    return None


@torch.no_grad()
def _model_shifts(model: nn.Module, inputs: Any, targets: Tensor, ignore_index: int) -> bool | None:
    """Whether a model shifts the labels that it computes its loss from; None if it computes no loss.

    Raises:
        ValueError: if its loss fits neither shifted nor unshifted labels.
    """
    if "labels" not in inspect.signature(model.forward).parameters or not hasattr(model, "config"):
        return None
    row = next((number for number, one in enumerate(targets) if (one[1:] != ignore_index).any()), 0)
    labels = targets[row : row + 1].long()
    masked = labels.masked_fill(labels == ignore_index, -100)
    try:
        with evaluating(model):
            if isinstance(inputs, dict):
                outputs = model(**{name: part[row : row + 1] for name, part in inputs.items()}, labels=masked)
            else:
                outputs = model(inputs[row : row + 1], labels=masked)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} takes labels but fails with those of a sample ({type(error).__name__}: {error}), "
            "so it is unknown whether it shifts them. Set loss.shift=true or false."
        ) from error
    own = getattr(outputs, "loss", None)
    if not isinstance(own, Tensor) or own.numel() != 1:
        return None
    means = {}
    for shift in (True, False):
        plain = NextToken(shift=shift)
        units = max(int(plain.units_per_sample(masked).sum()), 1)
        means[shift] = float(plain.loss_per_sample(outputs, masked).sum()) / units
        if abs(float(own) - means[shift]) <= _CLOSE * max(abs(means[shift]), 1.0):
            return shift
    raise ValueError(
        f"{type(model).__name__} computes a loss of {float(own):.6g} from the labels of a sample, but the "
        f"cross-entropy of its logits is {means[True]:.6g} with labels shifted by one and {means[False]:.6g} "
        "without: its loss has a term that loss=next_token would drop. Switch it off in the model's configuration, "
        "return the loss of every sample from the model (loss=output), or set loss.shift=true or false to train on "
        "the logits alone."
    )


def require_decoder_inputs(loss: Loss, model: nn.Module, inputs: Any) -> None:
    """Check that an encoder-decoder of transformers has decoder inputs, since models are never given labels here.

    Raises:
        ValueError: if such a model is trained on its tokens, and `inputs` have none for the decoder.
    """
    if not isinstance(loss, NextToken) or loss.shift is not None:
        return
    config = getattr(model, "config", None)
    given = set(inputs) if isinstance(inputs, dict) else set()
    if getattr(config, "is_encoder_decoder", False) and not given & {"decoder_input_ids", "decoder_inputs_embeds"}:
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder: its decoder reads the labels moved by one, and the data "
            "set has none. Add decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels) to each item, as "
            "the collator of transformers does; keep the labels as they are."
        )


def _describe_shift(model: nn.Module, shifts: bool | None) -> str:
    return f"{type(model).__name__} " + ("does not shift them" if shifts is False else "is not known to shift them")
