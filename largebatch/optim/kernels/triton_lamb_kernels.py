"""Kernels of LAMB in Triton: the moments and both norms, then, with the rates of `trust_rates`, the update made again.

m / correction1 / (sqrt(v / correction2) + eps) = scale m / (sqrt(v) + eps root2), root2 being the square root of
correction2 and scale = root2 / correction1: `scale`, and `eps` times root2, come from outside. Where parameters have
step numbers of their own, `scales`, float64 [num_tensors, 2], has both for every tensor.
"""

from __future__ import annotations

import triton
import triton.language as tl

from largebatch.optim.kernels.triton_kernels import is_whole, number_of, read, store_squares, write


@triton.jit
def _quotient(numerator: tl.tensor, denominator: tl.tensor, STATE: tl.constexpr) -> tl.tensor:
    return numerator / denominator if tl.float64 == STATE else tl.math.div_rn(numerator, denominator)


@triton.jit
def _direction(
    weight: tl.tensor, first: tl.tensor, second: tl.tensor, scale: tl.tensor, eps: tl.tensor, decay: tl.tensor,
    PLACE: tl.constexpr, STATE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    root = tl.sqrt(second) if tl.float64 == STATE else tl.sqrt_rn(second)
    update = _quotient(scale * first, root + eps, STATE)
    if PLACE == "inside":
        update += decay * weight
    return update


@triton.jit
def lamb_moments(
    table: tl.tensor, chunks: tl.tensor, firsts: tl.tensor, sums: tl.tensor, divisor: tl.tensor, scales: tl.tensor,
    scale: tl.float64, eps: tl.float64, beta1: tl.float64, share: tl.float64, beta2: tl.float64, rest2: tl.float64,
    decay: tl.float64, rate: tl.float64,
    PLACE: tl.constexpr, KIND: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr, CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    """Set m = beta1 m + share g and v = beta2 v + rest2 g^2; sums of w^2 and u^2. 24 bytes in float32.

    Without sums there is no ratio to wait for, and w = w - rate u at once: 28 bytes. `divisor`, if there is one, holds
    what g is divided by. Inside, u has + decay w; outside, w has - decay w first.
    """
    tensor = tl.load(chunks + tl.program_id(0))
    start = (tl.program_id(0) - tl.load(firsts + tensor)).to(tl.int64) * CHUNK
    row = table + 5 * tensor
    numel, w, g, m, v = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    scale, eps = number_of(scales, 2 * tensor, scale, STATE), number_of(scales, 2 * tensor + 1, eps, STATE)
    beta1, share = tl.full((), beta1, STATE), tl.full((), share, STATE)
    beta2, rest2 = tl.full((), beta2, STATE), tl.full((), rest2, STATE)
    decay, rate = tl.full((), decay, STATE), tl.full((), rate, STATE)
    if is_whole(w | g | m | v, start, numel, CHUNK):
        _lamb_moments(
            w, g, m, v, start, numel, sums, divisor, scale, eps, beta1, share, beta2, rest2, decay, rate, PLACE, KIND,
            GRAD, STATE, CHUNK, True,
        )  # fmt: skip
    else:
        _lamb_moments(
            w, g, m, v, start, numel, sums, divisor, scale, eps, beta1, share, beta2, rest2, decay, rate, PLACE, KIND,
            GRAD, STATE, CHUNK, False,
        )  # fmt: skip


@triton.jit
def _lamb_moments(
    w: tl.tensor, g: tl.tensor, m: tl.tensor, v: tl.tensor, start: tl.tensor, numel: tl.tensor, sums: tl.tensor,
    divisor: tl.tensor, scale: tl.tensor, eps: tl.tensor, beta1: tl.tensor, share: tl.tensor, beta2: tl.tensor,
    rest2: tl.tensor, decay: tl.tensor, rate: tl.tensor,
    PLACE: tl.constexpr, KIND: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr, CHUNK: tl.constexpr,
    WHOLE: tl.constexpr,
) -> None:  # fmt: skip
    at = start + tl.arange(0, CHUNK)
    weight = read(w, at, numel, KIND, STATE, WHOLE)
    grad = read(g, at, numel, GRAD, STATE, WHOLE)
    if divisor is not None:
        grad = _quotient(grad, tl.load(divisor), STATE)
    first = beta1 * read(m, at, numel, STATE, STATE, WHOLE) + share * grad
    second = beta2 * read(v, at, numel, STATE, STATE, WHOLE) + rest2 * grad * grad
    write(m, at, numel, first, STATE, WHOLE)
    write(v, at, numel, second, STATE, WHOLE)
    if PLACE == "outside":
        weight -= decay * weight
    update = _direction(weight, first, second, scale, eps, decay, PLACE, STATE)
    if sums is None:
        write(w, at, numel, weight - rate * update, KIND, WHOLE)
    else:
        store_squares(sums, weight, update, at, numel, WHOLE)


@triton.jit
def lamb_step(
    table: tl.tensor, chunks: tl.tensor, firsts: tl.tensor, rates: tl.tensor, scales: tl.tensor,
    scale: tl.float64, eps: tl.float64, decay: tl.float64,
    PLACE: tl.constexpr, KIND: tl.constexpr, STATE: tl.constexpr, CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    """Set w = w - rate u, with u from the moments as above. Reads w, m, v and writes w: 16 bytes in float32."""
    tensor = tl.load(chunks + tl.program_id(0))
    start = (tl.program_id(0) - tl.load(firsts + tensor)).to(tl.int64) * CHUNK
    row = table + 5 * tensor
    numel, w, m, v = tl.load(row), tl.load(row + 1), tl.load(row + 3), tl.load(row + 4)
    scale, eps = number_of(scales, 2 * tensor, scale, STATE), number_of(scales, 2 * tensor + 1, eps, STATE)
    decay, rate = tl.full((), decay, STATE), tl.load(rates + tensor).to(STATE)
    if is_whole(w | m | v, start, numel, CHUNK):
        _lamb_step(w, m, v, start, numel, scale, eps, decay, rate, PLACE, KIND, STATE, CHUNK, True)
    else:
        _lamb_step(w, m, v, start, numel, scale, eps, decay, rate, PLACE, KIND, STATE, CHUNK, False)


@triton.jit
def _lamb_step(
    w: tl.tensor, m: tl.tensor, v: tl.tensor, start: tl.tensor, numel: tl.tensor, scale: tl.tensor, eps: tl.tensor,
    decay: tl.tensor, rate: tl.tensor,
    PLACE: tl.constexpr, KIND: tl.constexpr, STATE: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr,
) -> None:  # fmt: skip
    at = start + tl.arange(0, CHUNK)
    weight = read(w, at, numel, KIND, STATE, WHOLE)
    if PLACE == "outside":
        weight -= decay * weight
    first, second = read(m, at, numel, STATE, STATE, WHOLE), read(v, at, numel, STATE, STATE, WHOLE)
    update = _direction(weight, first, second, scale, eps, decay, PLACE, STATE)
    write(w, at, numel, weight - rate * update, KIND, WHOLE)
