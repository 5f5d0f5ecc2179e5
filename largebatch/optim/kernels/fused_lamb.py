"""LAMB near the speed of torch's fused AdamW: its kernel makes the update, block by block in the processor's cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from largebatch.optim.forms import LambTerms
from largebatch.optim.kernels.flat import Row, norm, small_norms, small_then_large

BLOCK_NUMEL = 2**20
"""Most elements of a block: a few of its streams fit in a cache of tens of MiB, and calls do not dominate."""

SCRATCH_SHARE = 0.045
"""Temporary memory over the size of the group's parameters."""

LEAST_SCRATCH_NUMEL = 2**16

_NEARLY_ONE = 1 - 2**-53
_LATE = 1e20  # a step number at which every bias correction is 1


def fused_lamb(rows: Sequence[Row], terms: LambTerms) -> None:
    """One LAMB step on rows of flat views (parameter, gradient, two moments) and the step number.

    It has the forms that `LambForm.is_fused` says.

    The ratio needs the norm of the whole update before any of it is applied. So the update of a tensor is kept, as far
    as the scratch goes; the rest is made a second time, from the moments.

    Bytes per float32 parameter: 24 to read w, g, m, v and to write m, v; then 4 to 8 in w, or 24 where the update is
    made again. Its square roots and divisions are the other cost.
    """
    # With decay AdamW would multiply w by 1 - lr decay, which float32 rounds, each time alike.
    if terms.ratio is None and terms.decay == 0:
        _adamw(rows, terms, lr=terms.lr, weight_decay=0.0)
        return
    numels = [row[0].numel() for row in rows]
    room = min(max(int(SCRATCH_SHARE * sum(numels)), LEAST_SCRATCH_NUMEL), max(numels))
    scratch = torch.empty(room, dtype=rows[0][0].dtype)
    small, large = small_then_large(rows)
    for bunch in _bunches(small, room):
        _step_of_small(bunch, scratch, terms)
    for row in large:
        _step_of_large(row, scratch, terms)


def _adamw(rows: Sequence[Row], terms: LambTerms, *, lr: float, weight_decay: float) -> None:
    params, grads, exp_avgs, exp_avg_sqs, steps = (list(column) for column in zip(*rows, strict=True))
    torch._fused_adamw_(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        lr=lr,
        beta1=terms.beta1,
        beta2=terms.beta2,
        weight_decay=weight_decay,
        eps=terms.eps,
        amsgrad=False,
        maximize=False,
    )


def _make_updates(rows: Sequence[Row], into: list[Tensor], terms: LambTerms) -> None:
    """Advance the moments and write -u = -(r + decay w) into scratch, which AdamW takes for its parameters.

    From w, AdamW at lr=1 goes to (1 - its decay) w - r. A decay of 1 + ours makes that -decay w - r.
    """
    torch._foreach_copy_(into, [row[0] for row in rows])
    moved = [[update, *row[1:]] for update, row in zip(into, rows, strict=True)]
    _adamw(moved, terms, lr=1.0, weight_decay=1 + terms.decay)


def _rate(terms: LambTerms, weight_norm: float, update_norm: float) -> float:
    return terms.lr * (1.0 if terms.ratio is None else terms.ratio.of_numbers(weight_norm, update_norm))


def _bunches(rows: Sequence[Row], room: int) -> Iterator[list[Row]]:
    """Rows in order, as many at a time as have room together."""
    bunch: list[Row] = []
    taken = 0
    for row in rows:
        if bunch and taken + row[0].numel() > room:
            yield bunch
            bunch, taken = [], 0
        bunch.append(row)
        taken += row[0].numel()
    if bunch:
        yield bunch


def _step_of_small(rows: Sequence[Row], scratch: Tensor, terms: LambTerms) -> None:
    params = [row[0] for row in rows]
    updates = _kept(scratch, [param.numel() for param in params])
    _make_updates(rows, updates, terms)
    norms = zip(small_norms(params), small_norms(updates), strict=True)
    torch._foreach_mul_(updates, [_rate(terms, *pair) for pair in norms])
    torch._foreach_add_(params, updates)


def _step_of_large(row: Row, scratch: Tensor, terms: LambTerms) -> None:
    """The last blocks, as many as have room, keep their update; the first ones make it again."""
    block_numel = min(BLOCK_NUMEL, len(scratch))
    blocks = _blocks(row, block_numel)
    num_remade = max(0, math.ceil((row[0].numel() - len(scratch)) / block_numel))
    updates = [scratch[:block_numel]] * num_remade
    updates += _kept(scratch, [block[0].numel() for block in blocks[num_remade:]])
    weight_norms, update_norms = [], []
    for block, update in zip(blocks, updates, strict=True):
        weight_norms.append(norm(block[0]))  # first, since it brings the weights into the cache
        _make_updates([block], [update], terms)
        update_norms.append(norm(update))
    rate = _rate(terms, math.hypot(*weight_norms), math.hypot(*update_norms))
    for number in reversed(range(num_remade, len(blocks))):  # the latest is still in the cache
        blocks[number][0].add_(updates[number], alpha=rate)
    if num_remade:
        _apply_again(blocks[:num_remade], scratch[:block_numel], rate, terms)


def _blocks(row: Row, block_numel: int) -> list[Row]:
    if row[0].numel() <= block_numel:
        return [row]
    *tensors, step = row
    parts = [tensor.split(block_numel) for tensor in tensors]
    return [[*block, step] for block in zip(*parts, strict=True)]


def _kept(scratch: Tensor, numels: list[int]) -> list[Tensor]:
    ends = itertools.accumulate(numels)
    return [scratch[end - numel : end] for numel, end in zip(numels, ends, strict=True)]


def _apply_again(blocks: Sequence[Row], spare: Tensor, rate: float, terms: LambTerms) -> None:
    """Subtract rate u from w, with u from the moments, which stay as they are; `spare` has room for a block."""
    scale, eps = terms.scale_and_eps(float(blocks[0][4]))
    if spare.dtype != torch.float32:
        for weight, _, exp_avg, exp_avg_sq, _ in reversed(blocks):
            denominator = torch.sqrt(exp_avg_sq, out=spare[: len(weight)]).add_(eps)
            weight.mul_(1 - rate * terms.decay).addcdiv_(exp_avg, denominator, value=-rate * scale)
        return
    # AdamW on a gradient of zeros with betas that float32 takes for 1 changes no bit of the moments.
    spare.zero_()
    late = torch.tensor(_LATE)
    still = replace(terms, beta1=_NEARLY_ONE, beta2=_NEARLY_ONE, eps=eps)
    for weight, _, exp_avg, exp_avg_sq, _ in reversed(blocks):
        row = [weight, spare[: len(weight)], exp_avg, exp_avg_sq, late]
        _adamw([row], still, lr=rate * scale, weight_decay=terms.decay / scale)
