"""Self-speculative decoding: one model proposes several tokens at MASK positions and verifies them, one pass for both.

The output has the distribution of decoding token by token, whatever the proposals are; with temperature 0 it is the
same text. A pass computes the last token x, the drafts d_1 .. d_k that the pass before proposed, and m MASKs behind
them. With token shift the row of x gives the distribution p_1 of the next token, the row of d_i gives p_(i+1), and MASK
number j proposes the token j + 1 places behind d_k. Drafts are accepted from the left with probability
min(1, p_i(d_i) / q_i(d_i)); at the first rejection the token comes from max(0, p_i - q_i), normalised, and what was
proposed behind it is forgotten. Where all are accepted, the row of d_k gives one token more, and the m proposals are
the next drafts. All attention is causal, so what is cached for accepted tokens is what they alone would have left.

p and q are what penalties, bias, temperature, top-k, top-p and min-p leave. The penalties of p_i know the text up to
d_(i-1), as in decoding token by token; those of q also know the proposals before it.

Source: arXiv 2211.17192, section 2.3, and arXiv 2302.01318, algorithm 2 (the rule and its proof); arXiv 2604.11035
(drafts from the MASK rows of the verifying pass). Differs: the number of MASKs is chosen before each pass, from the
past alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.decoding import Decided, Request
from wrinklefree.engine.rows import Rows, Want
from wrinklefree.engine.windows import Window

Sample = tuple[int, float, list[tuple[int, float]]]  # token, logprob, most likely tokens


@dataclass(frozen=True, slots=True)
class _Draft:
    """What takes the place of a native proposal where nothing is drawn."""

    token: int


class SelfSpeculation:
    """The decoder of one answer.

    Attributes: ``forwards``; ``proposed_by_depth`` and ``accepted_by_depth``: the first, second, .. drafts of verifying
    passes, and how many of them were accepted.
    """

    def __init__(
        self,
        prompt: NDArray[np.int32],
        sampler: Any,
        mask_token_id: int,
        window: Window,
        context: int,
        limit: int,
        logprobs: int | None = None,
        plain: bool = False,
    ) -> None:
        """``prompt`` int32 [T]; ``sampler``: a native one, of this answer alone; ``limit``: tokens that are wanted.

        ``plain``: nothing but the most likely tokens is asked for, which the pass itself finds.
        """
        self.forwards = 0
        self.proposed_by_depth: list[int] = []
        self.accepted_by_depth: list[int] = []
        self._prompt = prompt
        self._sampler = sampler
        self._mask = mask_token_id
        self._window = window
        # The row of the last position that is wanted, or that the context has, gives nothing that anybody reads.
        self._rows_end = min(len(prompt) + limit - 1, context)
        self._logprobs = -1 if logprobs is None else logprobs
        self._last = len(prompt) - 1  # position of the last token that is certain
        self._token = int(prompt[-1])
        self._plain = plain and logprobs is None
        self._drafts: list[Any] = []
        self._request: Request | None = None
        sampler.accept(prompt, prompt=True)

    @property
    def proposed(self) -> int:
        """Drafts in verifying passes so far."""
        return sum(self.proposed_by_depth)

    @property
    def accepted(self) -> int:
        """Those of them that were accepted."""
        return sum(self.accepted_by_depth)

    def request(self) -> Request:
        """Return the prompt as in decoding token by token, then the last token with drafts and MASKs behind it."""
        if self._request is None:
            self._request = self._verification() if self.forwards else self._asking(self._prompt, "last", 0)
        return self._request

    def _verification(self) -> Request:
        first_mask = self._last + 1 + len(self._drafts)
        # The MASK in place p proposes for p + 1, and that draft must have a row of its own.
        room = max(0, self._rows_end - 1 - first_mask)
        masks = min(room, self._window.choose(len(self._drafts)))
        tokens = [self._token, *(draft.token for draft in self._drafts), *[self._mask] * masks]
        return self._asking(np.array(tokens, np.int32), "all", self._last, alone=True, truncate=self._last)

    def _asking(self, tokens: NDArray[np.int32], want: Want, start: int, **options: Any) -> Request:
        return Request(tokens, want, start, logits=not self._plain, choices=self._plain, **options)

    def take(self, rows: Rows) -> list[Decided]:
        """Verify the drafts; where all are accepted, sample one token more and draw new drafts."""
        self._request = None
        self.forwards += 1
        drafts, self._drafts = self._drafts, []
        decided: list[Decided] = []
        for row, draft in enumerate(drafts):
            accepted, sample = self._verify(rows, row, draft)
            decided.append(self._decide(*sample))
            if not accepted:
                self._count(len(drafts), len(decided) - 1)
                return decided
        decided.append(self._decide(*self._choose(rows, len(drafts))))
        self._count(len(drafts), len(drafts))
        masks = len(rows.tokens if rows.logits is None else rows.logits)
        self._drafts = [self._propose(rows, row) for row in range(len(drafts) + 1, masks)]
        return decided

    def _verify(self, rows: Rows, row: int, draft: Any) -> tuple[bool, Sample]:
        if rows.logits is None:
            token = rows.best(row)
            return token == draft.token, (token, 0.0, [])
        accepted, *sample = self._sampler.verify(rows.logits[row], draft, self._logprobs)
        return accepted, tuple(sample)

    def _choose(self, rows: Rows, row: int) -> Sample:
        if rows.logits is None:
            return rows.best(row), 0.0, []
        sample: Sample = self._sampler.sample(rows.logits[row], self._logprobs)
        return sample

    def _propose(self, rows: Rows, row: int) -> Any:
        return _Draft(rows.best(row)) if rows.logits is None else self._sampler.propose(rows.logits[row])

    def waiting(self) -> list[Decided]:
        """Return the drafts."""
        return [Decided(self._last + 1 + i, draft.token) for i, draft in enumerate(self._drafts)]

    def _decide(self, token: int, logprob: float, best: list[tuple[int, float]]) -> Decided:
        self._last += 1
        self._token = token
        if not self._plain:
            self._sampler.accept(np.array([token], np.int32))
        if self._logprobs < 0:
            return Decided(self._last, token)
        return Decided(self._last, token, None, logprob, tuple(best))

    def _count(self, drafts: int, accepted: int) -> None:
        for counts in (self.proposed_by_depth, self.accepted_by_depth):
            counts += [0] * (drafts - len(counts))
        for depth in range(drafts):
            self.proposed_by_depth[depth] += 1
            self.accepted_by_depth[depth] += depth < accepted
        self._window.record(drafts, accepted)
