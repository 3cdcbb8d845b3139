"""Which source sequence k of a mixture comes from: a function of the seed, k, and the history of the weights.

Positions are dealt in blocks of BLOCK. In each block a source has its exact share, rounded so that the rounding
never accumulates, in an order drawn by (seed, block). So shares are met within one sequence per source and block,
not only in expectation, and how often a source was used before position k is arithmetic, not a replay.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wrinklefree.data.permutation import key, permute
from wrinklefree.errors import InputError

BLOCK = 1024
_PURPOSE = 1


@dataclass(frozen=True)
class Mixture:
    """``history``: (position from which they hold, weight of each source), positions increasing from 0."""

    seed: int
    history: tuple[tuple[int, tuple[float, ...]], ...]

    @classmethod
    def start(cls, seed: int, weights: Sequence[float]) -> Mixture:
        """Return a mixture with the same weights from the first sequence on.

        Raises: InputError when a weight is negative or not finite, or all are zero.
        """
        return cls(seed, ((0, _checked(weights)),))

    @property
    def num_sources(self) -> int:
        return len(self.history[0][1])

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights in force at the end of the history; they sum to 1."""
        return self.history[-1][1]

    def changed(self, position: int, weights: Sequence[float]) -> Mixture:
        """Return the mixture whose weights change at ``position``; what came before stays as it was.

        Raises: InputError for weights of the wrong number or sign, or a position before the last change.
        """
        if len(weights) != self.num_sources:
            raise InputError(f"mixture: found {len(weights)} weights for {self.num_sources} sources")
        if position < self.history[-1][0]:
            raise InputError(f"mixture: the weights last changed at {self.history[-1][0]}, {position} is before that")
        kept = tuple(entry for entry in self.history if entry[0] < position)
        return Mixture(self.seed, (*kept, (position, _checked(weights))))

    def locate(self, position: int) -> tuple[int, int]:
        """Return (source, how many sequences of that source stand before this one) for sequence ``position``."""
        segment = bisect_right(self._firsts, position) - 1
        first, weights = self.history[segment]
        block, place = divmod(position - first, BLOCK)
        sources, ordinals = _block(self.seed, segment, block, weights)
        source = int(sources[place])
        return source, int(self._used_before[segment, source] + ordinals[place])

    @cached_property
    def _firsts(self) -> tuple[int, ...]:
        return tuple(first for first, _ in self.history)

    @cached_property
    def _used_before(self) -> NDArray[np.int64]:
        """How many sequences of each source the segments before each segment hold. Int64 [segments, sources]."""
        used = np.zeros((len(self.history), self.num_sources), np.int64)
        for index, ((first, weights), (end, _)) in enumerate(pairwise(self.history)):
            used[index + 1] = used[index] + _segment_uses(self.seed, index, end - first, weights)
        return used


@lru_cache(maxsize=4096)
def _segment_uses(seed: int, segment: int, size: int, weights: tuple[float, ...]) -> NDArray[np.int64]:
    """Return how many sequences of each source the first ``size`` of a segment hold. Int64 [sources]."""
    block, place = divmod(size, BLOCK)
    drawn = _block(seed, segment, block, weights)[0][:place]
    return _quota(block, weights) + np.bincount(drawn, minlength=len(weights))


@lru_cache(maxsize=64)
def _block(
    seed: int, segment: int, block: int, weights: tuple[float, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each place of a block, its source and that source's uses since the segment began. Int64 [BLOCK]."""
    before = _quota(block, weights)
    counts = _quota(block + 1, weights) - before
    order = permute(np.arange(BLOCK), BLOCK, key(seed, _PURPOSE, segment, block))
    sources = np.repeat(np.arange(len(weights)), counts)[order]
    ordinals = np.empty(BLOCK, np.int64)
    for source in range(len(weights)):
        mine = sources == source
        ordinals[mine] = before[source] + np.arange(int(counts[source]))
    return sources, ordinals


def _quota(block: int, weights: tuple[float, ...]) -> NDArray[np.int64]:
    """Return the uses of each source in the first ``block`` blocks: rounded cumulative shares, so they sum exactly."""
    edges = np.floor(np.cumsum((0.0, *weights)) * (block * BLOCK) + 0.5).astype(np.int64)
    edges[-1] = block * BLOCK
    return np.diff(edges)


def _checked(weights: Sequence[float]) -> tuple[float, ...]:
    total = float(sum(weights))
    if not weights or any(not 0.0 <= weight < float("inf") for weight in weights) or total <= 0.0:
        raise InputError(f"mixture weights: found {list(weights)}, each must be 0 or more and one above 0")
    return tuple(float(weight) / total for weight in weights)
