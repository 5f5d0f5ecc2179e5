"""What the Triton kernels of LARS and LAMB share. A launch goes over all tensors of a group; `triton_steps` launches.

A tensor is cut into chunks, a program has one. What a program finds, and where (`triton_tables` makes it):

    table   int64 [num_tensors, 5]      number of elements; addresses of w, g and the state
    chunks  int32 [num_chunks]          the tensor of a chunk
    firsts  int32 [num_tensors + 1]     the first chunk of a tensor, then the number of chunks
    sums    float64 [num_chunks, 2]     of squared weights, of squared directions; each chunk has its own
    rates   float64 [num_tensors]       of the step; without it `rate` is that of all

Numbers come in double precision and are rounded once to that of the state (STATE), in which the arithmetic is. Sums
have a fixed order, so that the same bits come out every time. Roots and quotients are rounded right: memory is what a
step waits for. No number is known to the compiler, so a new rate compiles nothing; forms are: a decay of 0 is not
0 * inf.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_whole(addresses: tl.tensor, start: tl.tensor, numel: tl.tensor, CHUNK: tl.constexpr) -> tl.tensor:
    """Whether a chunk is full, and all of it aligned to what a thread moves at once; bits of addresses are or-ed."""
    return (addresses % 16 == 0) & (start + CHUNK <= numel)


@triton.jit
def read(
    address: tl.tensor, at: tl.tensor, numel: tl.tensor, KIND: tl.constexpr, STATE: tl.constexpr, WHOLE: tl.constexpr
) -> tl.tensor:
    """Elements of a chunk in the type of the state; 0 beyond the end of the tensor."""
    if WHOLE:
        values = tl.load(tl.multiple_of(address.to(tl.pointer_type(KIND)), 16) + at)
    else:
        values = tl.load(address.to(tl.pointer_type(KIND)) + at, mask=at < numel, other=0.0)
    return values.to(STATE)


@triton.jit
def write(
    address: tl.tensor, at: tl.tensor, numel: tl.tensor, values: tl.tensor, KIND: tl.constexpr, WHOLE: tl.constexpr
) -> None:
    """Write the elements of a chunk, rounded once."""
    if WHOLE:
        tl.store(tl.multiple_of(address.to(tl.pointer_type(KIND)), 16) + at, values.to(KIND))
    else:
        tl.store(address.to(tl.pointer_type(KIND)) + at, values.to(KIND), mask=at < numel)


@triton.jit
def store_squares(
    sums: tl.tensor, weight: tl.tensor, direction: tl.tensor, at: tl.tensor, numel: tl.tensor, WHOLE: tl.constexpr
) -> None:
    """Store the sums of a chunk."""
    if not WHOLE:  # beyond the end a direction may be 0 / 0
        direction = tl.where(at < numel, direction, 0.0)
    chunk = tl.program_id(0)
    tl.store(sums + 2 * chunk, tl.sum(weight * weight).to(tl.float64))
    tl.store(sums + 2 * chunk + 1, tl.sum(direction * direction).to(tl.float64))


@triton.jit
def number_of(numbers: tl.tensor, index: tl.tensor, otherwise: tl.float64, STATE: tl.constexpr) -> tl.tensor:
    """An entry of a table of numbers; without a table the number that is that of all."""
    return tl.full((), otherwise, STATE) if numbers is None else tl.load(numbers + index).to(STATE)


@triton.jit
def trust_rates(
    sums: tl.tensor,
    firsts: tl.tensor,
    rates: tl.tensor,
    lr: tl.float64,
    coefficient: tl.float64,
    weight_decay: tl.float64,
    eps: tl.float64,
    lower: tl.float64,
    upper: tl.float64,
    at_most: tl.float64,
    BLOCK: tl.constexpr,
) -> None:
    """Set the rate lr ratio of a tensor, with the ratio of `trust_ratio`; comparisons leave NaN what it is."""
    tensor = tl.program_id(0)
    end = tl.load(firsts + tensor + 1)
    of_weight = tl.zeros((BLOCK,), tl.float64)
    of_direction = tl.zeros((BLOCK,), tl.float64)
    for start in range(tl.load(firsts + tensor), end, BLOCK):
        chunk = start + tl.arange(0, BLOCK)
        of_weight += tl.load(sums + 2 * chunk, mask=chunk < end, other=0.0)
        of_direction += tl.load(sums + 2 * chunk + 1, mask=chunk < end, other=0.0)
    weight_norm = tl.sqrt(tl.sum(of_weight))
    direction_norm = tl.sqrt(tl.sum(of_direction))
    least, most = tl.full((), lower, tl.float64), tl.full((), upper, tl.float64)
    scale = tl.where(weight_norm < least, least, weight_norm)
    scale = tl.where(scale > most, most, scale)
    ratio = coefficient * scale / (direction_norm + weight_decay * weight_norm + eps)
    largest = tl.full((), at_most, tl.float64)
    ratio = tl.where(ratio > largest, largest, ratio)
    ratio = tl.where((scale == 0.0) | (direction_norm == 0.0), tl.full((), 1.0, tl.float64), ratio)
    tl.store(rates + tensor, lr * ratio)
