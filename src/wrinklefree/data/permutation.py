"""Random numbers and permutations by counter: each value is a function of a key and an index, with no state.

Written out (instead of taken from NumPy's generators) because the order of the data is part of what a checkpoint
promises: NumPy does not promise the same stream in its next version.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF

U64 = NDArray[np.uint64]


def mix(values: U64) -> U64:
    """Return the 64-bit hash of each value. Source: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    z = values + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=1024)
def key(*parts: int) -> int:
    """Return one 64-bit key for a sequence of integers, such as (seed, purpose, epoch)."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mix(state ^ mix(np.array([part & _MASK], np.uint64)))
    return int(state[0])


def permute(indices: NDArray[np.int64], size: int, permutation_key: int) -> NDArray[np.int64]:
    """Return where each index goes in the permutation of ``range(size)`` that the key names.

    ``indices`` int64 of any shape, values in ``range(size)``; the same shape comes back. Needs no memory in
    proportion to ``size``, so a single element costs the same in a set of ten as in one of ten thousand million.

    Source: a Feistel network over 2^(2h) >= size with cycle walking (Black and Rogaway, CT-RSA 2002, section 2).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    out = _feistel(indices.astype(np.uint64), half, permutation_key)
    # At most three of four values lie outside; walking on along the cycle keeps the map one-to-one.
    while (outside := out >= np.uint64(size)).any():
        out[outside] = _feistel(out[outside], half, permutation_key)
    return out.astype(np.int64)


def _feistel(values: U64, half: int, permutation_key: int) -> U64:
    shift, low_bits = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & low_bits
    for round_number in range(_ROUNDS):
        round_key = np.uint64(key(permutation_key, round_number))
        left, right = right, left ^ (mix(right ^ round_key) & low_bits)
    return (left << shift) | right
