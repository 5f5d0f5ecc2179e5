"""Random bits as a pure function of their key.

Every random draw of a run (data order, augmentation, dropout, subsets) depends on its purpose and position, never on
the process that makes it. So any process draws the same numbers again without saved or synchronised state.
"""

from __future__ import annotations

import hashlib
from operator import index

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def stream_key(seed: int, *names: int | str) -> int:
    """64-bit key of the random stream of `seed` and `names`.

    The key is a hash, not a sum: with `seed + epoch`, seed 0 in epoch 1 would repeat seed 1 in epoch 0, and three
    seeds would share their data orders, shifted by an epoch. numpy integers count as int.

    Raises:
        TypeError: if a part is neither a string nor an integer.

    >>> stream_key(0, "order", 1) == stream_key(1, "order", 0)
    False
    >>> stream_key(0, "order", 1) == stream_key(0, "order", 1)
    True
    """
    parts = (f"str:{part}" if isinstance(part, str) else f"int:{index(part)}" for part in (seed, *names))
    text = "\x1f".join(parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix64(values: UInt64Array) -> UInt64Array:
    """Finaliser of SplitMix64: a bijection of 64-bit integers in which every input bit affects every output bit.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", with Stafford's variant 13.
    """
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def keyed_bits(key: int | UInt64Array, ids: npt.NDArray[np.int64], count: int) -> UInt64Array:
    """`count` words of 64 random bits for every id, shape [len(ids), count].

    Args:
        key: a stream key, or one key per id.
        ids: integers, shape [n]. Row i depends on (key, ids[i]) alone, not on its place in the array.
        count: words per id. Column j does not depend on `count`.
    """
    keys = np.asarray(key, dtype=np.uint64)
    start = mix64(ids.astype(np.uint64) * _GOLDEN_GAMMA + keys)
    columns = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN_GAMMA
    return mix64(mix64(start[:, None] ^ columns[None, :]) + keys.reshape(-1, 1))


def keyed_uniforms(key: int | UInt64Array, ids: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1) for every id, shape [len(ids), count], float64 with 53 random bits."""
    return (keyed_bits(key, ids, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
