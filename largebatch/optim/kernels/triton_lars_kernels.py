"""Kernels of LARS in Triton: the norms, then, with the rates of `trust_rates`, the step."""

from __future__ import annotations

import triton
import triton.language as tl

from largebatch.optim.kernels.triton_kernels import is_whole, number_of, read, store_squares, write


@triton.jit
def lars_norms(
    table: tl.tensor, chunks: tl.tensor, firsts: tl.tensor, sums: tl.tensor,
    weight_decay: tl.float64,
    JOINT: tl.constexpr, KIND: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr, CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    """Sums of w^2 and d^2, d = g + weight_decay w where it is joint, else g. Reads w and g: 8 bytes in float32."""
    tensor = tl.load(chunks + tl.program_id(0))
    start = (tl.program_id(0) - tl.load(firsts + tensor)).to(tl.int64) * CHUNK
    row = table + 5 * tensor
    numel, w, g = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    if is_whole(w | g, start, numel, CHUNK):
        _lars_norms(w, g, start, numel, sums, weight_decay, JOINT, KIND, GRAD, STATE, CHUNK, True)
    else:
        _lars_norms(w, g, start, numel, sums, weight_decay, JOINT, KIND, GRAD, STATE, CHUNK, False)


@triton.jit
def _lars_norms(
    w: tl.tensor, g: tl.tensor, start: tl.tensor, numel: tl.tensor, sums: tl.tensor,
    weight_decay: tl.float64,
    JOINT: tl.constexpr, KIND: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr, CHUNK: tl.constexpr,
    WHOLE: tl.constexpr,
) -> None:  # fmt: skip
    at = start + tl.arange(0, CHUNK)
    weight = read(w, at, numel, KIND, STATE, WHOLE)
    direction = read(g, at, numel, GRAD, STATE, WHOLE)
    if JOINT:
        direction += tl.full((), weight_decay, STATE) * weight
    store_squares(sums, weight, direction, at, numel, WHOLE)


@triton.jit
def lars_step(
    table: tl.tensor, chunks: tl.tensor, firsts: tl.tensor, rates: tl.tensor,
    rate: tl.float64, momentum: tl.float64, weight_decay: tl.float64, outer_lr: tl.float64,
    DECAYS: tl.constexpr, NESTEROV: tl.constexpr, KIND: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    """Set v = momentum v + rate (g + weight_decay w); w = w - outer_lr v, or a momentum on. 20 bytes in float32."""
    tensor = tl.load(chunks + tl.program_id(0))
    start = (tl.program_id(0) - tl.load(firsts + tensor)).to(tl.int64) * CHUNK
    row = table + 5 * tensor
    numel, w, g, v = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    rate = number_of(rates, tensor, rate, STATE)
    momentum, outer = tl.full((), momentum, STATE), tl.full((), outer_lr, STATE)
    decay = tl.full((), weight_decay, STATE)
    if is_whole(w | g | v, start, numel, CHUNK):
        _lars_step(
            w, g, v, start, numel, rate, momentum, decay, outer, DECAYS, NESTEROV, KIND, GRAD, STATE, CHUNK, True,
        )  # fmt: skip
    else:
        _lars_step(
            w, g, v, start, numel, rate, momentum, decay, outer, DECAYS, NESTEROV, KIND, GRAD, STATE, CHUNK, False,
        )  # fmt: skip


@triton.jit
def _lars_step(
    w: tl.tensor, g: tl.tensor, v: tl.tensor, start: tl.tensor, numel: tl.tensor, rate: tl.tensor,
    momentum: tl.tensor, decay: tl.tensor, outer: tl.tensor,
    DECAYS: tl.constexpr, NESTEROV: tl.constexpr, KIND: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr,
    CHUNK: tl.constexpr, WHOLE: tl.constexpr,
) -> None:  # fmt: skip
    at = start + tl.arange(0, CHUNK)
    weight = read(w, at, numel, KIND, STATE, WHOLE)
    push = read(g, at, numel, GRAD, STATE, WHOLE)
    if DECAYS:
        push += decay * weight
    push *= rate
    velocity = momentum * read(v, at, numel, STATE, STATE, WHOLE) + push
    step = velocity
    if NESTEROV:
        step = momentum * velocity + push
    write(v, at, numel, velocity, STATE, WHOLE)
    write(w, at, numel, weight - outer * step, KIND, WHOLE)
