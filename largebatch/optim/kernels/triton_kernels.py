"""The kernels of LARS and LAMB in Triton. A launch goes over all tensors of a group; `triton_steps` launches.

Both make the norms first (LAMB with the moments), then the rates, then the step (LAMB with its update made again).

A tensor is cut into chunks, a program has one. What a program finds, and where (`triton_tables` makes it):

    table   int64 [num_tensors, 5]      number of elements; addresses of w, g and the state
    chunks  int32 [num_chunks]          the tensor of a chunk
    firsts  int32 [num_tensors + 1]     the first chunk of a tensor, then the number of chunks
    sums    float64 [num_chunks, 2]     of squared weights, of squared directions; each chunk has its own
    rates   float64 [num_tensors]       of the step; without it `rate` is that of all
    scales  float64 [num_tensors, 2]    `LambTerms.scale_and_eps`, where step numbers differ; else `scale` and `eps`

Numbers come in double precision and are rounded once to that of the state (STATE), in which the arithmetic is. Sums
have a fixed order, so that the same bits come out every time. Roots and quotients are rounded right: memory is what a
step waits for. No number is known to the compiler, so a new rate compiles nothing; forms are: a decay of 0 is not
0 * inf.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def chunk_of(table: tl.tensor, chunks: tl.tensor, firsts: tl.tensor, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The work of this program: tensor, first element, number of elements; addresses of w, g and the state."""
    tensor = tl.load(chunks + tl.program_id(0))
    start = (tl.program_id(0) - tl.load(firsts + tensor)).to(tl.int64) * CHUNK
    row = table + 5 * tensor
    numel, w, g, first, second = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    return tensor, start, numel, w, g, first, second


@triton.jit
def whole_of(own: tl.tensor, g: tl.tensor, start: tl.tensor, numel: tl.tensor, CHUNK: tl.constexpr) -> tl.tensor:
    """2 for a chunk that is full and aligned to what a thread moves at once; 1 if only its gradient is not; else 0.

    `own` has the bits of the other addresses, or-ed. Weights and state are aligned, as torch allocates them; DDP lays
    gradients end to end, and behind a bias of 10 elements none is. A kernel has its body for each number,
    `for WHOLE in tl.static_range(3)`: Triton has to know it where it reads and writes.
    """
    is_full = (own % 16 == 0) & (start + CHUNK <= numel)
    return is_full.to(tl.int32) + (is_full & (g % 16 == 0)).to(tl.int32)


@triton.jit
def read(
    address: tl.tensor, at: tl.tensor, numel: tl.tensor, KIND: tl.constexpr, STATE: tl.constexpr, WHOLE: tl.constexpr
) -> tl.tensor:
    """Elements of a chunk in the type of the state; 0 beyond the end of the tensor."""
    if WHOLE == 2:
        values = tl.load(tl.multiple_of(address.to(tl.pointer_type(KIND)), 16) + at)
    elif WHOLE == 1:
        values = tl.load(address.to(tl.pointer_type(KIND)) + at)
    else:
        values = tl.load(address.to(tl.pointer_type(KIND)) + at, mask=at < numel, other=0.0)
    return values.to(STATE)


@triton.jit
def write(
    address: tl.tensor, at: tl.tensor, numel: tl.tensor, values: tl.tensor, KIND: tl.constexpr, WHOLE: tl.constexpr
) -> None:
    """Write the elements of a chunk, rounded once."""
    if WHOLE == 0:
        tl.store(address.to(tl.pointer_type(KIND)) + at, values.to(KIND), mask=at < numel)
    else:
        tl.store(tl.multiple_of(address.to(tl.pointer_type(KIND)), 16) + at, values.to(KIND))


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


@triton.jit
def lars_norms(
    table: tl.tensor, chunks: tl.tensor, firsts: tl.tensor, sums: tl.tensor, decay: tl.float64,
    JOINT: tl.constexpr, KIND: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr, CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    """Sums of w^2 and d^2, d = g + decay w where it is joint, else g. Reads w and g: 8 bytes in float32."""
    _, start, numel, w, g, _, _ = chunk_of(table, chunks, firsts, CHUNK)
    whole = whole_of(w, g, start, numel, CHUNK)
    for WHOLE in tl.static_range(3):
        if whole == WHOLE:
            at, OWN = start + tl.arange(0, CHUNK), 2 if WHOLE else 0
            weight = read(w, at, numel, KIND, STATE, OWN)
            direction = read(g, at, numel, GRAD, STATE, WHOLE)
            if JOINT:
                direction += tl.full((), decay, STATE) * weight
            store_squares(sums, weight, direction, at, numel, WHOLE)


@triton.jit
def lars_step(
    table: tl.tensor, chunks: tl.tensor, firsts: tl.tensor, rates: tl.tensor,
    rate: tl.float64, momentum: tl.float64, decay: tl.float64, outer_lr: tl.float64,
    DECAYS: tl.constexpr, NESTEROV: tl.constexpr, KIND: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    """Set v = momentum v + rate (g + decay w); w = w - outer_lr v, or a momentum on. 20 bytes in float32."""
    tensor, start, numel, w, g, v, _ = chunk_of(table, chunks, firsts, CHUNK)
    rate = number_of(rates, tensor, rate, STATE)
    momentum, outer = tl.full((), momentum, STATE), tl.full((), outer_lr, STATE)
    decay = tl.full((), decay, STATE)
    whole = whole_of(w | v, g, start, numel, CHUNK)
    for WHOLE in tl.static_range(3):
        if whole == WHOLE:
            at, OWN = start + tl.arange(0, CHUNK), 2 if WHOLE else 0
            weight = read(w, at, numel, KIND, STATE, OWN)
            push = read(g, at, numel, GRAD, STATE, WHOLE)
            if DECAYS:
                push += decay * weight
            push *= rate
            velocity = momentum * read(v, at, numel, STATE, STATE, OWN) + push
            step = velocity
            if NESTEROV:
                step = momentum * velocity + push
            write(v, at, numel, velocity, STATE, WHOLE)
            write(w, at, numel, weight - outer * step, KIND, WHOLE)


@triton.jit
def _quotient(numerator: tl.tensor, denominator: tl.tensor, STATE: tl.constexpr) -> tl.tensor:
    return numerator / denominator if tl.float64 == STATE else tl.math.div_rn(numerator, denominator)


@triton.jit
def _update(
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
    tensor, start, numel, w, g, m, v = chunk_of(table, chunks, firsts, CHUNK)
    scale, eps = number_of(scales, 2 * tensor, scale, STATE), number_of(scales, 2 * tensor + 1, eps, STATE)
    beta1, share = tl.full((), beta1, STATE), tl.full((), share, STATE)
    beta2, rest2 = tl.full((), beta2, STATE), tl.full((), rest2, STATE)
    decay, rate = tl.full((), decay, STATE), tl.full((), rate, STATE)
    whole = whole_of(w | m | v, g, start, numel, CHUNK)
    for WHOLE in tl.static_range(3):
        if whole == WHOLE:
            at, OWN = start + tl.arange(0, CHUNK), 2 if WHOLE else 0
            weight = read(w, at, numel, KIND, STATE, OWN)
            grad = read(g, at, numel, GRAD, STATE, WHOLE)
            if divisor is not None:
                grad = _quotient(grad, tl.load(divisor), STATE)
            first = beta1 * read(m, at, numel, STATE, STATE, OWN) + share * grad
            second = beta2 * read(v, at, numel, STATE, STATE, OWN) + rest2 * grad * grad
            write(m, at, numel, first, STATE, WHOLE)
            write(v, at, numel, second, STATE, WHOLE)
            if PLACE == "outside":
                weight -= decay * weight
            update = _update(weight, first, second, scale, eps, decay, PLACE, STATE)
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
    tensor, start, numel, w, _, m, v = chunk_of(table, chunks, firsts, CHUNK)
    scale, eps = number_of(scales, 2 * tensor, scale, STATE), number_of(scales, 2 * tensor + 1, eps, STATE)
    decay, rate = tl.full((), decay, STATE), tl.load(rates + tensor).to(STATE)
    whole = whole_of(w | m | v, w, start, numel, CHUNK)
    for WHOLE in tl.static_range(0, 3, 2):
        if whole == WHOLE:
            at = start + tl.arange(0, CHUNK)
            weight = read(w, at, numel, KIND, STATE, WHOLE)
            if PLACE == "outside":
                weight -= decay * weight
            first, second = read(m, at, numel, STATE, STATE, WHOLE), read(v, at, numel, STATE, STATE, WHOLE)
            update = _update(weight, first, second, scale, eps, decay, PLACE, STATE)
            write(w, at, numel, weight - rate * update, KIND, WHOLE)
