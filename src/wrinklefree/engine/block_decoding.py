"""Block-diffusion decoding: the current block holds MASK where nothing is decided, each pass decides some of it.

Positions count from the beginning of the prompt, blocks are [kB, (k + 1) B). Finished text lies in the cache as the
marker's clean rule says; the current block is computed with the noised rule. The token of a position is predicted by
the state before it (token shift; for a block's first position that is the clean state before the block) or by its own.

A pass computes the whole block when a block or a sub-block begins, else the open sub-block alone (with the row before
it, which predicts its first position): the rest of the block keeps the keys and values it has. When a block is
finished, its final tokens are computed once more, with the clean rule, in the first pass of the next block. With causal
attention in both halves a state depends on what is before it alone, so only rows behind a changed token are computed,
and a position whose row has not changed is decided without a pass.

Sources: arXiv 2509.26328, section 3.3 (blocks, sub-blocks, threshold); arXiv 2505.22618 (the cache of a block's other
positions); arXiv 2505.24857 (the entropy bound). Differs: the first token of a block may be decided together with
others; commit and first pass are one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.engine.decoding import Decided, Request
from wrinklefree.engine.decoding_settings import DEFAULT_SUB_BLOCK, DecodingSettings
from wrinklefree.engine.rows import Rows
from wrinklefree.errors import FormatError


@dataclass(frozen=True, slots=True)
class Sampling:
    """Tokens are drawn, penalised or listed: what a row's best token alone does not say. ``sampler``: a native one."""

    sampler: Any
    logprobs: int | None


@dataclass(slots=True)
class _Guess:
    """What a row says of the position it predicts."""

    token: int
    probability: float
    entropy: float
    logits: NDArray[np.float32] | None = None  # [V], a copy, when tokens are drawn from it
    peak: tuple[float, float] = (0.0, 0.0)  # logit and probability of the best token
    logprob: float | None = None
    best: tuple[tuple[int, float], ...] = ()


class BlockDecoder:
    """One answer by block diffusion.

    ``open`` positions are those of the current sub-block that are waited for: not decided, before the limit, and before
    the first end token decided.
    """

    def __init__(
        self,
        marker: DiffusionMarker,
        prompt: NDArray[np.int32],
        limit: int,
        settings: DecodingSettings,
        end_tokens: frozenset[int],
        sampling: Sampling | None = None,
    ) -> None:
        """``prompt`` int32 [T]; ``limit``: tokens to decide, within whole blocks; ``sampling`` None: the best token."""
        size = marker.block_size
        assert size is not None and limit >= 1
        self.forwards = 0
        self._size = size
        self._shift = int(marker.token_shift)
        self._sub = min(settings.sub_block or DEFAULT_SUB_BLOCK, size)
        self._settings = settings
        self._ends = end_tokens
        self._sampling = sampling
        rule = marker.rule
        self._causal = rule.noised == "causal"
        self._noised_block = 1 if self._causal else size
        self._clean_block = 1 if rule.clean == "causal" else size
        self._all_causal = self._causal and self._clean_block == 1
        self._stop = len(prompt) + limit
        blocks = -(-self._stop // size)
        self._ids = np.full(blocks * size, marker.mask_token_id, np.int32)
        self._ids[: len(prompt)] = prompt
        self._known = np.zeros(blocks * size, bool)
        self._known[: len(prompt)] = True
        self._guesses: dict[int, _Guess] = {}  # by the position they are for
        self._commit = 0  # from here on finished text is to be computed with the clean rule
        self._fresh = 0  # causal blocks: rows before this one hold what they should
        self._begin_block(len(prompt) // size * size)
        if sampling is not None:
            sampling.sampler.accept(prompt, prompt=True)

    def _begin_block(self, start: int) -> None:
        self._start = start
        self._fresh = max(self._fresh, start) if not self._all_causal else self._fresh
        self._whole = True  # compute all rows of the block in the next pass
        self._limit = min(start + self._size, self._stop)  # what is waited for in this block ends here
        self._sub_start = start
        self._open = self._find_open()
        self._guesses = {}

    def _find_open(self) -> list[int]:
        """Return the waiting positions of the first sub-block that has any; move on to it."""
        waiting = (np.flatnonzero(~self._known[self._start : self._limit]) + self._start).tolist()
        if not waiting:
            return []
        sub = (waiting[0] - self._start) // self._sub * self._sub + self._start
        if sub != self._sub_start:
            self._sub_start, self._whole = sub, True
        return [position for position in waiting if position < sub + self._sub]

    def _rows(self) -> tuple[int, int, int, int]:
        """Return what is to be computed: finished rows [first, second), rows of the block [third, fourth)."""
        start, end = self._start, self._start + self._size
        commit = (self._commit, start) if self._commit < start else (start, start)
        if self._causal:
            return self._causal_rows(*commit)
        if self._whole:
            return *commit, start, end
        return *commit, max(start, self._sub_start - self._shift), min(self._sub_start + self._sub, end)

    def _causal_rows(self, commit: int, committed: int) -> tuple[int, int, int, int]:
        """Return the same for causal blocks: from the first row that changed to the last that somebody needs."""
        unknown = [position - self._shift for position in self._open if position not in self._guesses]
        first = min([max(self._start, self._fresh), *(row for row in unknown if row >= self._start)])
        last = max(first, max(self._open) - self._shift + 1)
        # One row alone goes through attention in another way, and a finished state must not depend on that.
        if self._all_causal and committed - commit + last - first == 1:
            if commit < committed:
                commit = max(0, commit - 1)
            else:
                first = max(0, first - 1)
        return commit, committed, first, last

    def request(self) -> Request:
        """Return the rows of the next pass."""
        commit, committed, first, last = self._rows()
        if commit == committed:
            commit = first
        wanted = [position - self._shift - commit for position in self._open]
        head = committed - commit if committed > commit else 0
        return Request(
            self._ids[commit:last],
            tuple(row for row in wanted if row >= 0),
            commit,
            self._noised_block,
            logits=self._sampling is not None,
            head=0 if self._noised_block == self._clean_block else max(head, 0),
            head_block=self._clean_block,
        )

    def take(self, rows: Rows) -> list[Decided]:
        """Decide what the rule says; more than once where the next rows are there already."""
        commit, committed, first, last = self._rows()
        begin = commit if commit < committed else first
        self._remember([position for position in self._open if position - self._shift >= begin], rows)
        self.forwards += 1
        self._commit = max(self._commit, committed)
        self._fresh = max(last, self._fresh)
        self._whole = False
        decided: list[Decided] = []
        while True:
            decided += self._decide()
            if not self._open:
                self._end_block()
                break
            if not self._all_there():
                break
        return sorted(decided, key=lambda one: one.position)

    def waiting(self) -> list[Decided]:
        """Return the guesses for the open positions."""
        found = [(position, self._guesses[position]) for position in self._open if position in self._guesses]
        return [Decided(position, guess.token, guess.probability) for position, guess in found]

    def _remember(self, positions: Sequence[int], rows: Rows) -> None:
        tokens, probability, entropy = rows.tokens.tolist(), rows.probability.tolist(), rows.entropy.tolist()
        for place, position in enumerate(positions):
            if tokens[place] < 0:
                raise FormatError("logits: found NaN or infinity; the model's weights overflow float32, train or "
                                  "export it again")  # fmt: skip
            guess = self._guesses[position] = _Guess(tokens[place], probability[place], entropy[place])
            if rows.logits is not None:
                guess.logits = rows.logits[place].copy()
                guess.peak = (float(guess.logits[guess.token]), guess.probability)

    def _all_there(self) -> bool:
        """Whether the open positions' rows are what another pass would give: nothing in front of them has changed."""
        first = self._fresh if self._causal else self._start
        if self._commit < self._start or (self._whole and not self._causal):
            return False
        return all(position in self._guesses and position - self._shift < first for position in self._open)

    def _decide(self) -> list[Decided]:
        if self._sampling is not None:
            for position in self._open:
                self._draw(self._guesses[position], self._sampling)
        chosen = sorted(self._open[place] for place in self._chosen([self._guesses[at] for at in self._open]))
        decided = []
        for position in chosen:
            guess = self._guesses.pop(position)
            self._ids[position] = guess.token
            self._known[position] = True
            if guess.token in self._ends:
                self._limit = min(self._limit, position)
            decided.append(Decided(position, guess.token, guess.probability, guess.logprob, guess.best))
        self._fresh = min(self._fresh, chosen[0])
        if self._sampling is not None:
            self._sampling.sampler.accept(np.array([one.token for one in decided], np.int32))
        self._open = self._find_open()
        return decided

    @staticmethod
    def _draw(guess: _Guess, sampling: Sampling) -> None:
        """Draw a token from the filtered distribution; its confidence is its probability in the unfiltered one."""
        assert guess.logits is not None
        listed = -1 if sampling.logprobs is None else sampling.logprobs
        guess.token, logprob, best = sampling.sampler.sample(guess.logits, listed)
        peak, probability = guess.peak
        guess.probability = probability * math.exp(float(guess.logits[guess.token]) - peak)
        if listed >= 0:
            guess.logprob, guess.best = logprob, tuple(best)

    def _chosen(self, guesses: Sequence[_Guess]) -> list[int]:
        """Return which of the guesses are decided, at least one; of equal ones the earlier first."""
        settings = self._settings
        places = range(len(guesses))
        if settings.entropy_bound is not None:
            by_entropy = sorted(places, key=lambda place: guesses[place].entropy)
            total = 0.0
            for count, place in enumerate(by_entropy):  # before it is added, the sum lacks the largest
                if total > settings.entropy_bound:
                    return by_entropy[:count]
                total += guesses[place].entropy
            return by_entropy
        by_confidence = sorted(places, key=lambda place: -guesses[place].probability)
        if settings.tokens_per_forward is not None:
            return by_confidence[: settings.tokens_per_forward]
        sure = sum(guess.probability > settings.threshold for guess in guesses)
        return by_confidence[: max(1, sure)]

    def _end_block(self) -> None:
        """Move on to the next block, if anything is waited for there."""
        if self._limit < min(self._start + self._size, self._stop) or self._limit == self._stop:
            return  # an end token, or the last position
        self._commit = min(self._fresh, self._start + self._size) if self._all_causal else self._start
        self._begin_block(self._start + self._size)
