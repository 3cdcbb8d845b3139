"""The scorer of packed models and ternary files: the native engine, many requests in joint passes, without torch.

What a request has in common with the one before it in the same slot stays there. That changes no bit of its scores: the
rows of a pass do not depend on each other, nor on where a prompt is cut, as long as no row is computed alone (see
`engine.prefix_cache`); so at least two rows are computed anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.engine import Batch, BatchItem, Engine
from wrinklefree.engine.decoding import causal_piece_end
from wrinklefree.engine.sampling import SamplingParams
from wrinklefree.engine.together import Together
from wrinklefree.eval.loss import LogitsFunction, engine_logits, token_losses
from wrinklefree.eval.scorer import Diffusion, Request, Scores, Settings, WithTokenizer, checked

SLOTS = 9  # eight of them for scores
_PASS_TOKENS = 256  # of all slots together: their logits are 156 MB for a vocabulary of 152,000


class EngineScorer(WithTokenizer):
    """A `Scorer` over an `Engine`. While scores are being drawn all of its slots but one are in use."""

    runs_on = "engine"

    def __init__(self, name: str, engine: Engine) -> None:
        super().__init__(engine.tokenizer)
        self.name, self.engine = name, engine
        self.context: int | None = engine.context
        self.logits: LogitsFunction | None = engine_logits(engine)
        self.diffusion = _diffusion(name, engine)

    def describe(self) -> dict[str, Any]:
        """See `Scorer.describe`."""
        engine = self.engine
        return {"kernels": engine.kernels_name, "layout": engine.layout, "threads": engine.threads,
                "context": engine.context}  # fmt: skip

    def score(self, requests: Sequence[Request]) -> Iterator[Scores]:
        """See `Scorer.score`; requests with one context should be neighbours."""
        for request in requests:
            checked(self, request, self.engine.vocab_size)
        return _Lanes(self.engine, requests).run()

    def generate(self, prompts: Sequence[Sequence[int]], settings: Settings) -> Iterator[str]:
        """See `Scorer.generate`; a diffusion model decodes as `wf generate` has it by default."""
        params = SamplingParams(
            max_tokens=settings.max_tokens, temperature=settings.temperature, top_p=settings.top_p, seed=settings.seed,
            stop=settings.stop,
        )  # fmt: skip
        together = Together(self.engine, cache=max(1, self.engine.slots - 1))
        try:
            for answer in [together.add(list(prompt), params) for prompt in prompts]:
                yield answer.run().text
        finally:
            together.close()


class _Lane:
    """One slot: the requests it has to do, one after the other, and what it holds of the last."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.queue: deque[int] = deque()
        self.number: int | None = None
        self.inputs: NDArray[np.int64] = np.zeros(0, np.int64)
        self.done = 0
        self._held: NDArray[np.int64] = np.zeros(0, np.int64)
        self._losses: list[NDArray[np.float64]] = []
        self._greedy: list[NDArray[np.bool_]] = []

    def begin(self, number: int, request: Request) -> int:
        """Take up a request; return how many positions the slot keeps."""
        self.number, self.request = number, request
        self.inputs = request.tokens[:-1]  # nothing is predicted from the last one
        self.done = kept(self._held, self.inputs, request.first)
        self._held = self.inputs if len(self.inputs) > 1 else self.inputs[:0]
        self._losses, self._greedy = [], []
        return self.done

    def item(self, room: int) -> BatchItem | None:
        """Return the next tokens to compute, at most ``room``, or None when they would be a row alone."""
        if self.number is None or (room < 2 and len(self.inputs) > 1):
            return None
        end = causal_piece_end(len(self.inputs), self.done, room)
        wanted = range(max(self.request.first - 1, self.done) - self.done, end - self.done)
        return BatchItem(self.slot, self.inputs[self.done : end], want=list(wanted) or "none", start=self.done)

    def take(self, computed: int, rows: NDArray[np.float32]) -> Scores | None:
        """Take the logits of an item; return the scores after the last."""
        self.done += computed
        if len(rows):
            targets = self.request.tokens[self.done + 1 - len(rows) : self.done + 1]
            self._losses.append(token_losses(rows, targets))
            self._greedy.append(rows.argmax(axis=1) == targets)
        if self.done < len(self.inputs):
            return None
        self.number = None
        return Scores(np.concatenate(self._losses), np.concatenate(self._greedy))


def kept(held: NDArray[np.int64], inputs: NDArray[np.int64], first: int) -> int:
    """Return how many positions of ``held`` serve a request with these inputs, whose token ``first`` is to be scored.

    The row before that token is computed anew, and never one row alone.
    """
    most = min(len(held), len(inputs), first - 1)
    differ = held[:most] != inputs[:most]
    count = int(differ.argmax()) if differ.any() else most
    return max(0, count - 1) if len(inputs) - count == 1 else count


class _Lanes:
    """Spreads requests over slots; those with one context go into the same slot."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._engine, self._requests = engine, requests
        same = groupby(range(len(requests)), key=lambda i: requests[i].tokens[: requests[i].first].tobytes())
        self._groups = deque(deque(numbers) for _, numbers in same)
        self._found: dict[int, Scores] = {}

    def run(self) -> Iterator[Scores]:
        """Yield the scores of each request, in order."""
        with Batch(self._engine) as batch:
            most = max(1, self._engine.slots - 1)
            lanes = [_Lane(batch.open()) for _ in range(min(most, len(self._groups)))]
            for number in range(len(self._requests)):
                while number not in self._found:
                    self._pass(batch, lanes)
                yield self._found.pop(number)

    def _pass(self, batch: Batch, lanes: Sequence[_Lane]) -> None:
        room = _PASS_TOKENS
        work: list[tuple[_Lane, BatchItem]] = []
        for lane in lanes:
            self._supply(batch, lane)
            item = lane.item(room) if room > 0 else None
            if item is not None:
                work.append((lane, item))
                room -= len(item.tokens)
        for (lane, item), rows in zip(work, batch.step([item for _, item in work]), strict=True):
            number = lane.number
            scores = lane.take(len(item.tokens), rows)
            if scores is not None:
                assert number is not None
                self._found[number] = scores

    def _supply(self, batch: Batch, lane: _Lane) -> None:
        if lane.number is not None:
            return
        if not lane.queue and self._groups:
            lane.queue = self._groups.popleft()
        if lane.queue:
            number = lane.queue.popleft()
            batch.truncate(lane.slot, lane.begin(number, self._requests[number]))


def _diffusion(name: str, engine: Engine) -> Diffusion | None:
    dlm: dict[str, Any] | None = (engine.config.get("wrinklefree") or {}).get("dlm")
    if dlm is None:
        return None
    from wrinklefree.eval.masked_engine import engine_masked_losses

    return Diffusion(dlm, engine_masked_losses(engine, DiffusionMarker.of(dlm, name)), engine.banned_tokens)
