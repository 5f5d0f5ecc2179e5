"""LAMB near the speed of torch's fused AdamW: its kernel makes the update, block by block in the processor's cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from largebatch.optim.forms import LambForm
from largebatch.optim.kernels.flat import Row, norm, small_norms, small_then_large
from largebatch.optim.trust_ratio import ratio_of_numbers

BLOCK_NUMEL = 2**20
"""Most elements of a block: a few of its streams fit in a cache of tens of MiB, and calls do not dominate."""

SCRATCH_SHARE = 0.045
"""Temporary memory over the size of the group's parameters."""

LEAST_SCRATCH_NUMEL = 2**16

RatioOf = Callable[[float, float], float]
"""Norm of the weights, norm of the update -> ratio."""

_NEARLY_ONE = 1 - 2**-53
_LATE = 1e20  # a step number at which every bias correction is 1


def fused_lamb(
    rows: Sequence[Row],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    adapts: bool,
    form: LambForm,
) -> None:
    """One LAMB step on rows of flat views (parameter, gradient, two moments) and the step counter.

    Of the forms it has those that `form.is_fused` says.

    The ratio needs the norm of the whole update before any of it is applied. So the update of a tensor is kept, as far
    as the scratch goes; the rest is made a second time, from the moments.

    Bytes per float32 parameter: 24 to read w, g, m, v and to write m, v; then 4 to 8 in w, or 24 where the update is
    made again. Its square roots and divisions are the other cost.
    """
    torch._foreach_add_([row[4] for row in rows], torch.tensor(1.0), alpha=1.0)
    options = {"beta1": beta1, "beta2": beta2, "eps": eps}
    if not adapts and weight_decay == 0:
        _adamw(rows, lr=lr, weight_decay=0.0, **options)
        return
    ratio_of: RatioOf = partial(ratio_of_numbers, **form.ratio_options)
    if not adapts:  # AdamW would multiply w by 1 - lr weight_decay, which float32 rounds, each time alike
        ratio_of = _no_ratio
    numels = [row[0].numel() for row in rows]
    room = min(max(int(SCRATCH_SHARE * sum(numels)), LEAST_SCRATCH_NUMEL), max(numels))
    scratch = torch.empty(room, dtype=rows[0][0].dtype)
    small, large = small_then_large(rows)
    for bunch in _bunches(small, room):
        _step_of_small(bunch, scratch, ratio_of, lr=lr, weight_decay=weight_decay, **options)
    for row in large:
        _step_of_large(row, scratch, ratio_of, lr=lr, weight_decay=weight_decay, **options)


def _no_ratio(weight_norm: float, update_norm: float) -> float:
    return 1.0


def _adamw(rows: Sequence[Row], *, lr: float, weight_decay: float, beta1: float, beta2: float, eps: float) -> None:
    params, grads, exp_avgs, exp_avg_sqs, steps = (list(column) for column in zip(*rows, strict=True))
    torch._fused_adamw_(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


def _make_updates(rows: Sequence[Row], into: list[Tensor], *, weight_decay: float, **options: float) -> None:
    """Advance the moments and write -u = -(r + weight_decay w) into scratch, which AdamW takes for its parameters.

    From w, AdamW at lr=1 goes to (1 - decay) w - r. A decay of 1 + weight_decay makes that -weight_decay w - r.
    """
    torch._foreach_copy_(into, [row[0] for row in rows])
    moved = [[update, *row[1:]] for update, row in zip(into, rows, strict=True)]
    _adamw(moved, lr=1.0, weight_decay=1 + weight_decay, **options)


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


def _step_of_small(
    rows: Sequence[Row], scratch: Tensor, ratio_of: RatioOf, *, lr: float, weight_decay: float, **options: float
) -> None:
    params = [row[0] for row in rows]
    numels = [param.numel() for param in params]
    updates = _kept(scratch, numels)
    _make_updates(rows, updates, weight_decay=weight_decay, **options)
    norms = zip(small_norms(params), small_norms(updates), strict=True)
    torch._foreach_mul_(updates, [lr * ratio_of(*pair) for pair in norms])
    torch._foreach_add_(params, updates)


def _step_of_large(
    row: Row, scratch: Tensor, ratio_of: RatioOf, *, lr: float, weight_decay: float, **options: float
) -> None:
    """The last blocks, as many as have room, keep their update; the first ones make it again."""
    block_numel = min(BLOCK_NUMEL, len(scratch))
    blocks = _blocks(row, block_numel)
    num_remade = max(0, math.ceil((row[0].numel() - len(scratch)) / block_numel))
    updates = [scratch[:block_numel]] * num_remade
    updates += _kept(scratch, [block[0].numel() for block in blocks[num_remade:]])
    weight_norms, update_norms = [], []
    for block, update in zip(blocks, updates, strict=True):
        weight_norms.append(norm(block[0]))  # first, since it brings the weights into the cache
        _make_updates([block], [update], weight_decay=weight_decay, **options)
        update_norms.append(norm(update))
    rate = lr * ratio_of(math.hypot(*weight_norms), math.hypot(*update_norms))
    for number in reversed(range(num_remade, len(blocks))):  # the latest is still in the cache
        blocks[number][0].add_(updates[number], alpha=rate)
    if num_remade:
        _apply_again(blocks[:num_remade], scratch[:block_numel], rate=rate, weight_decay=weight_decay, **options)


def _blocks(row: Row, block_numel: int) -> list[Row]:
    if row[0].numel() <= block_numel:
        return [row]
    *tensors, step = row
    parts = [tensor.split(block_numel) for tensor in tensors]
    return [[*block, step] for block in zip(*parts, strict=True)]


def _kept(scratch: Tensor, numels: list[int]) -> list[Tensor]:
    ends = itertools.accumulate(numels)
    return [scratch[end - numel : end] for numel, end in zip(numels, ends, strict=True)]


def _apply_again(
    blocks: Sequence[Row],
    spare: Tensor,
    *,
    rate: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Subtract rate u from w, with u from the moments, which stay as they are; `spare` has room for a block.

    m / correction1 / (sqrt(v / correction2) + eps) = (root2 / correction1) m / (sqrt(v) + eps root2), root2 being the
    square root of correction2.
    """
    steps = float(blocks[0][4])
    root2 = math.sqrt(1 - beta2**steps)
    scale = root2 / (1 - beta1**steps)
    if spare.dtype != torch.float32:
        for weight, _, exp_avg, exp_avg_sq, _ in reversed(blocks):
            denominator = torch.sqrt(exp_avg_sq, out=spare[: len(weight)]).add_(eps * root2)
            weight.mul_(1 - rate * weight_decay).addcdiv_(exp_avg, denominator, value=-rate * scale)
        return
    # AdamW on a gradient of zeros with betas that float32 takes for 1 changes no bit of the moments.
    spare.zero_()
    late = torch.tensor(_LATE)
    for weight, _, exp_avg, exp_avg_sq, _ in reversed(blocks):
        _adamw(
            [[weight, spare[: len(weight)], exp_avg, exp_avg_sq, late]],
            lr=rate * scale,
            weight_decay=weight_decay / scale,
            beta1=_NEARLY_ONE,
            beta2=_NEARLY_ONE,
            eps=eps * root2,
        )
