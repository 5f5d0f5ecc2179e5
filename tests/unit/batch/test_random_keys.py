"""Random bits as a pure function of (key, id, column)."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from largebatch.batch.random_keys import keyed_bits, keyed_uniforms, mix64, stream_key

pytestmark = pytest.mark.quick

GAMMA = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def numbers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_streams_of_different_seeds_and_epochs_never_meet():
    # With seed + epoch there would be 199 different keys among these 10^4. By chance, two of 10^4 hashes of 64 bits
    # agree with probability 10^8 / 2 / 2^64 = 3e-12.
    assert len({stream_key(seed, "order", epoch) for seed in range(100) for epoch in range(100)}) == 10**4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 1), (0, "1")),
        ((0, "a", "b"), (0, "ab")),
        ((0, 12, 3), (0, 1, 23)),
        ((0, "a"), (0, "a", "")),
        ((0,), (0, 0)),
    ],
)
def test_names_are_neither_glued_together_nor_confused_with_numbers(one: tuple, other: tuple):
    assert stream_key(*one) != stream_key(*other)


def test_a_seed_from_numpy_is_the_same_seed():
    assert stream_key(np.int64(7), "order", np.int32(1)) == stream_key(7, "order", 1)  # type: ignore[arg-type]


def test_a_seed_that_is_not_a_whole_number_is_refused():
    with pytest.raises(TypeError):
        stream_key(0.5, "order")  # type: ignore[arg-type]


def test_a_key_is_a_word_of_64_bits():
    keys = [stream_key(seed) for seed in range(200)]
    assert all(0 <= key < 2**64 for key in keys)
    # All of 200 keys below 2^63 has probability 2^-200: the top bit is in use.
    assert max(keys) >= 2**63


def test_the_streams_of_a_seed_stay_what_they_are_from_release_to_release():
    # Golden numbers: whoever changes them changes the data order, the weights and the augmentation of every old run.
    assert stream_key(0, "order", 0) == 0xE09D7D5CD7A5580E
    assert keyed_bits(1, numbers(0, 2), 2).tolist() == [
        [15299324705730038575, 648025832493785119],
        [14304273829918536775, 11735481122183695226],
    ]


def test_mixing_reproduces_the_published_numbers_of_splitmix64():
    # First outputs of SplitMix64 with seed 1234567, https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = np.array([(1234567 + GAMMA * count) & MASK for count in range(1, 6)], dtype=np.uint64)
    assert mix64(states).tolist() == published


def unmix64(word: int) -> int:
    """The inverse of SplitMix64's finaliser, in Python's integers, from its definition."""

    def unshift(value: int, shift: int) -> int:
        result = value
        for _ in range(64 // shift):
            result = value ^ (result >> shift)
        return result

    word = unshift(word, 31) * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    word = unshift(word, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return unshift(word, 30)


def test_mixing_can_be_undone_so_no_two_words_meet():
    words = [0, 1, MASK, *np.random.default_rng(0).integers(0, MASK, 1000, dtype=np.uint64).tolist()]
    assert [unmix64(word) for word in mix64(np.array(words, dtype=np.uint64)).tolist()] == words


def test_mixing_leaves_its_argument_alone():
    words = np.arange(5, dtype=np.uint64)
    mix64(words)
    assert words.tolist() == [0, 1, 2, 3, 4]


def test_every_input_bit_moves_every_output_bit_half_of_the_time():
    words = np.random.default_rng(0).integers(0, MASK, 4096, dtype=np.uint64)
    bits = np.arange(64, dtype=np.uint64)
    flipped = np.array([mix64(words) ^ mix64(words ^ (np.uint64(1) << bit)) for bit in bits])
    share = np.array([((flipped >> bit) & np.uint64(1)).mean(axis=1) for bit in bits])
    # The standard deviation of a share of 4096 fair coins is 1/128. Six of them off: 2e-9 for each of 4096 shares.
    assert abs(share - 0.5).max() < 6 / 128


def test_a_row_depends_on_its_id_alone_and_a_column_on_its_number_alone():
    ids = np.random.default_rng(1).integers(0, 2**62, 50)
    bits = keyed_bits(99, ids, 4)
    assert bits.shape == (50, 4)
    assert bits.dtype == np.uint64
    order = np.random.default_rng(2).permutation(50)
    assert (keyed_bits(99, ids[order], 4) == bits[order]).all()
    assert (keyed_bits(99, ids[7:8], 4) == bits[7:8]).all()
    assert (keyed_bits(99, ids, 9)[:, :4] == bits).all()


def test_one_key_per_id_equals_one_call_per_key():
    keys = np.array([3, 2**64 - 1, 3, 0], dtype=np.uint64)
    ids = numbers(5, 6, 7, 5)
    rows = [keyed_bits(int(key), ids[place : place + 1], 3)[0] for place, key in enumerate(keys)]
    assert (keyed_bits(keys, ids, 3) == np.array(rows)).all()


def test_the_words_of_many_ids_columns_and_neighbouring_keys_are_all_different():
    # Weyl sequences of the same step overlap: id + 1 under one key is id under another, if nothing else is done.
    keys = [0, 1, GAMMA, 2 * GAMMA & MASK, MASK]
    words = np.concatenate([keyed_bits(key, np.arange(1000), 8).ravel() for key in keys])
    assert len(np.unique(words)) == 5 * 1000 * 8


def test_no_ids_or_no_columns_give_empty_arrays():
    assert keyed_bits(1, numbers(), 3).shape == (0, 3)
    assert keyed_uniforms(1, numbers(4, 5), 0).shape == (2, 0)


def test_uniforms_are_the_upper_53_bits_as_a_fraction():
    uniforms, bits = keyed_uniforms(5, np.arange(100), 3), keyed_bits(5, np.arange(100), 3)
    exact = [[int(word) // 2**11 / 2**53 for word in row] for row in bits]
    assert uniforms.tolist() == exact
    assert uniforms.dtype == np.float64


@pytest.mark.parametrize("consecutive", ["ids", "columns", "keys"])
def test_uniforms_are_uniform_and_consecutive_ones_independent(consecutive: str):
    count = 20_000
    if consecutive == "ids":
        uniforms = keyed_uniforms(stream_key(0, "test"), np.arange(count), 1).ravel()
    elif consecutive == "columns":
        uniforms = keyed_uniforms(stream_key(0, "test"), numbers(3), count).ravel()
    else:
        uniforms = keyed_uniforms(np.arange(count, dtype=np.uint64), np.zeros(count, dtype=np.int64), 1).ravel()
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    # Six p-values in all, fixed once and for all: below 1e-4 by chance in 6 of 10^4 choices of a sound generator.
    assert scipy.stats.kstest(uniforms, "uniform").pvalue > 1e-4
    cells = (uniforms * 16).astype(int)
    pairs = np.bincount(cells[:-1:2] * 16 + cells[1::2], minlength=256)
    assert scipy.stats.chisquare(pairs).pvalue > 1e-4
