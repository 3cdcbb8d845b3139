"""One loop for all ways of decoding: decoders say what they need computed, joint passes compute it.

A decoder is the state of one answer. Its `request` names the tokens whose states it needs next; its `take` receives
them and says what became certain. It knows nothing of passes, other answers, text, stop strings or limits.

`JointPasses` computes the requests of all its decoders together, so that the weights are read once for all of them. An
answer does not depend on who else is there: the rows of a pass are independent of each other to the last bit, and so
is a row of where its prompt is cut, as long as blocks stay whole and no row is alone that has company elsewhere.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.native import load_native
from wrinklefree.engine.prefix_cache import LEAST, PrefixCache, shared
from wrinklefree.engine.rows import NATIVE_WANTS, Rows, Want

PIECE_TOKENS = 256  # of a prompt, between two chances for Ctrl-C, and for all prompts of a pass


@dataclass(frozen=True, slots=True)
class Request:
    """What a decoder needs computed next, in its slot.

    ``tokens`` int32 [T] at the positions from ``start`` on; what the slot held there is replaced. ``want``: the rows to
    give to `Decoder.take`, as indices in rising order or in words. ``block``: 1 for causal attention, B for attention
    by blocks of B (a query sees its block and all before). ``head``: the first so many tokens have ``head_block``
    instead. ``alone``: attention exactly as if each row were decoded singly. ``truncate``: first forget the slot's
    tokens from this position on. ``logits``, ``choices``: what `Rows` must hold (without ``choices`` its tokens,
    probabilities and entropies are not set). ``hidden``: the states behind the last norm instead of these. ``sampler``
    (a native one) and ``logprobs``: what to do with the logits of the last row, the one that is wanted; the result is
    `Rows.sampled`.

    A request longer than a pass (a prompt) is computed in pieces; `Decoder.take` is called after the last.
    """

    tokens: NDArray[np.int32]
    want: Want | tuple[int, ...]
    start: int
    block: int = 1
    alone: bool = False
    truncate: int | None = None
    logits: bool = True
    choices: bool = True
    head: int = 0
    head_block: int = 1
    hidden: bool = False
    sampler: Any = None
    logprobs: int = -1


@dataclass(frozen=True, slots=True)
class Decided:
    """A token and the position (counted from the beginning of the prompt) it was decided for.

    ``confidence``: its probability in the unfiltered softmax, None where nobody asked. ``logprob`` and ``best`` as in
    `engine.Step`. ``last``: the text ends behind it, as its constraint says.
    """

    position: int
    token: int
    confidence: float | None = None
    logprob: float | None = None
    best: tuple[tuple[int, float], ...] = ()
    last: bool = False


class Decoder(Protocol):
    """The state of one answer.

    ``forwards``: requests taken so far. The prompt's own prefill counts only as part of the request that it is merged
    with: the first one.
    """

    forwards: int

    def request(self) -> Request:
        """Return what must be computed next; the same again until `take` was called."""
        ...

    def take(self, rows: Rows) -> list[Decided]:
        """Receive the wanted rows of the last request; return what is decided now, by position; may be empty.

        The arrays are valid until the next pass; copy what must be kept.
        """
        ...

    def waiting(self) -> list[Decided]:
        """Return the present guesses for positions that are still open, by position: for traces, may be empty."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """What one pass did for one answer: the positions ``first`` to ``last`` were computed, ``decided`` is the result.

    ``seconds``: of the pass, which other answers may have shared.
    """

    slot: int
    decided: list[Decided]
    first: int
    last: int
    seconds: float


@dataclass(slots=True)
class _Job:
    slot: int
    decoder: Decoder
    number: int = 0  # of arrival
    served: int = 0  # the last pass that computed some of its prompt, or that it came before
    fresh: bool = False  # nothing was computed for it, so more may be taken over from other slots
    cached: int = 0  # positions that were taken over
    request: Request | None = None
    done: int = 0  # tokens of the request that were computed
    kept: list[Rows] = field(default_factory=list)  # wanted rows of pieces before the last
    sampled: Any = None  # of the present request, also when a pass was broken off before it was handed out


@dataclass(slots=True)
class _Call:
    """The arguments of one native pass, an entry for each item."""

    slots: list[int]
    tokens: list[NDArray[np.int32]]
    wants: list[int | NDArray[np.int32]]
    starts: list[int]
    blocks: list[int]
    alone: list[bool]
    hidden: list[bool]


class JointPasses:
    """The decoders of one model, each in a slot of its own; they come and go between passes. For one thread.

    ``failures``: slots whose decoder failed in the last pass, and how; they have left, and nobody else is concerned.

    Prompts are computed in pieces, beside the rows of all answers that are under way: at most about ``most`` tokens of
    prompts a pass, ``most_beside`` where there are such answers, which a long pass would hold up. Prompts take turns,
    so that a short one does not wait for the whole of a long one. With a cache, a prompt waits for another one that is
    being computed and begins in the same way.
    """

    def __init__(
        self, model: Any, cache: PrefixCache | None = None, most: int = PIECE_TOKENS, most_beside: int = PIECE_TOKENS
    ) -> None:
        """``model``: the native model; ``cache``: of its slots."""
        self._model = model
        self._cache = cache
        self._most, self._most_beside = max(most, 2), max(most_beside, 2)  # a row alone would be another one
        self._hidden = np.empty((0, model.hidden_size), np.float32)
        self._jobs: dict[int, _Job] = {}
        self._numbers = itertools.count()
        self._passes = 0
        self.failures: list[tuple[int, Exception]] = []
        self._grow(1)

    def __contains__(self, slot: int) -> bool:
        return slot in self._jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, slot: int, decoder: Decoder, request: Request | None = None, cached: int = 0) -> None:
        """Let an answer take part, in a slot that holds ``cached`` positions of its first request."""
        job = self._jobs[slot] = _Job(slot, decoder, next(self._numbers), self._passes)
        job.request, job.done, job.cached = request, cached, cached
        job.fresh = self._cache is not None

    def cached(self, slot: int) -> int:
        """Return how many positions of an answer's prompt were taken over from earlier ones."""
        return self._jobs[slot].cached

    def remove(self, slot: int) -> None:
        """Let it leave."""
        self._jobs.pop(slot, None)

    def run(self) -> list[Turn]:
        """Compute one pass; return what it did for the answers whose request is complete.

        Raises: what the model raises, nobody is behind this pass then; of decoders only what is no Exception (Ctrl-C),
        and that one has left.
        """
        started = time.perf_counter()
        self.failures = []
        call = _Call([], [], [], [], [], [], [])
        taken: list[tuple[_Job, Request, int, int, int]] = []
        rows, hidden, logits, choices = 0, 0, False, False
        for job, request, begin, end in self._pieces():
            count = self._add(call, job.slot, request, begin, end)
            taken.append((job, request, begin, end, count))
            if request.hidden:
                hidden += count
            elif count:
                rows, logits, choices = rows + count, logits or request.logits, choices or request.choices
        if not taken:
            return []
        if rows > len(self._tokens):
            self._grow(rows)
        if hidden > len(self._hidden):
            self._hidden = np.empty((hidden, self._model.hidden_size), np.float32)
        try:
            self._model.forward_batch(
                call.slots, call.tokens, call.wants, self._logits[:rows] if logits else None, call.starts, call.blocks,
                call.alone, (self._tokens[:rows], self._probability[:rows], self._entropy[:rows]) if choices else None,
                self._hidden[:hidden] if hidden else None, call.hidden,
            )  # fmt: skip
        except BaseException:
            if self._cache is not None:
                for job, request, begin, _, _ in taken:
                    self._cache.lost(job.slot, request.start + begin)
            raise
        return self._hand_out(taken, started)

    def _pieces(self) -> list[tuple[_Job, Request, int, int]]:
        """Choose what the next pass computes: tokens [begin, end) of requests."""
        found: list[tuple[_Job, Request, int, int]] = []
        prompts: list[tuple[_Job, Request]] = []
        self._passes += 1
        for job in list(self._jobs.values()):
            request = job.request or self._next_request(job)
            if request is None:
                continue
            if job.decoder.forwards == 0:
                prompts.append((job, request))
            else:
                total = len(request.tokens)
                end = total if total <= PIECE_TOKENS else _piece_end(request, job.done, PIECE_TOKENS)
                found.append((job, request, job.done, end))
        most = room = self._most_beside if found else self._most
        for job, request in sorted(prompts, key=lambda each: (each[0].served, each[0].number)):
            if room <= 0 or self._waits(job, request, prompts):
                continue
            end = _piece_end(request, job.done, room)
            if end == job.done or (end - job.done > room and room < most):
                continue
            found.append((job, request, job.done, end))
            if 2 * (end - job.done) >= min(most, len(request.tokens) - job.done):  # what others left is no turn
                job.served = self._passes
            room -= end - job.done
            job.fresh = False
        return found

    def _waits(self, job: _Job, request: Request, prompts: list[tuple[_Job, Request]]) -> bool:
        """Take over what other slots hold of a prompt; or say that one being computed will hold much more of it."""
        if not job.fresh or self._cache is None:
            return False
        slot, count = self._cache.best(request)
        earlier = (other for mate, other in prompts if mate.number < job.number)
        if max((shared(request, other) for other in earlier), default=0) >= max(count, job.done) + LEAST:
            return True
        if count > job.done and slot != job.slot:
            self._cache.copy(slot, job.slot, count)
            job.done = job.cached = count
        return False

    def _hand_out(self, taken: list[tuple[_Job, Request, int, int, int]], started: float) -> list[Turn]:
        seconds = time.perf_counter() - started
        turns: list[Turn] = []
        self._sample(taken)
        row = hidden_row = 0
        for job, request, begin, end, count in taken:
            if request.hidden:
                given = Rows.of_hidden(self._hidden[hidden_row : hidden_row + count])
                hidden_row += count
            else:
                at = slice(row, row + count)
                row += count
                given = Rows(self._tokens[at], self._probability[at], self._entropy[at],
                             self._logits[at] if request.logits else None, sampled=job.sampled)  # fmt: skip
            job.done = end
            if self._cache is not None:
                self._cache.computed(job.slot, request, begin, end)
            if end < len(request.tokens):
                if count:
                    job.kept.append(_joined([given]))
                continue
            if job.kept:
                given = _joined([*job.kept, given])
            job.request = job.sampled = None
            try:
                decided = job.decoder.take(given)
            except Exception as error:
                self._fail(job, error)
                continue
            except BaseException:
                self.remove(job.slot)
                raise
            turns.append(Turn(job.slot, decided, request.start + begin, request.start + end - 1, seconds))
        return turns

    def _sample(self, taken: list[tuple[_Job, Request, int, int, int]]) -> None:
        """Let the samplers of all complete requests work at the same time, on the model's threads."""
        jobs, rows = [], []
        row = 0
        for job, request, _, end, count in taken:
            row += 0 if request.hidden else count
            if request.sampler is not None and end == len(request.tokens) and job.sampled is None:
                jobs.append((job, request))
                rows.append(row - 1)
        if len(jobs) < 2:
            return
        samplers, logprobs = [each.sampler for _, each in jobs], [each.logprobs for _, each in jobs]
        found = load_native().sample_rows(self._model, samplers, self._logits, rows, logprobs)
        for (job, _), one in zip(jobs, found, strict=True):
            job.sampled = one

    def _next_request(self, job: _Job) -> Request | None:
        try:
            request = job.decoder.request()
        except Exception as error:
            self._fail(job, error)
            return None
        job.done = 0
        job.kept.clear()
        if request.truncate is not None:
            self._model.truncate(job.slot, request.truncate)
            if self._cache is not None:
                self._cache.lost(job.slot, request.truncate)
        job.request = request
        return request

    def _fail(self, job: _Job, error: Exception) -> None:
        self.remove(job.slot)
        self.failures.append((job.slot, error))

    @staticmethod
    def _add(call: _Call, slot: int, request: Request, begin: int, end: int) -> int:
        """Add tokens ``begin`` to ``end`` of a request to a call; return the number of wanted rows among them."""
        split = min(max(request.head, begin), end)
        rows = 0
        for first, last, block in ((begin, split, request.head_block), (split, end, request.block)):
            if first == last:
                continue
            want: int | NDArray[np.int32] = 0
            if isinstance(request.want, tuple):
                chosen = [index - first for index in request.want if first <= index < last]
                if chosen:
                    want, rows = np.array(chosen, np.int32), rows + len(chosen)
            elif last == len(request.tokens) or request.want == "all":
                want = NATIVE_WANTS[request.want]
                rows += (0, 1, last - first)[want]
            call.slots.append(slot)
            call.tokens.append(request.tokens[first:last])
            call.wants.append(want)
            call.starts.append(request.start + first)
            call.blocks.append(block)
            call.alone.append(request.alone)
            call.hidden.append(request.hidden)
        return rows

    def _grow(self, rows: int) -> None:
        self._tokens = np.empty(rows, np.int32)
        self._probability = np.empty(rows, np.float32)
        self._entropy = np.empty(rows, np.float32)
        self._logits = np.empty((rows, self._model.vocab_size), np.float32)


def _piece_end(request: Request, begin: int, most: int) -> int:
    """Return where a piece of about ``most`` tokens ends that starts with token ``begin``.

    On a border of blocks, beyond ``most`` if one block is larger; ``begin`` itself where a row would be alone.
    """
    total = len(request.tokens)
    if total - begin <= most:
        return total
    border, block = (request.head, request.head_block) if begin < request.head else (total, request.block)
    if border - begin <= most:
        return border
    if block == 1:
        return begin if most < 2 else causal_piece_end(border, begin, most)
    position = request.start + begin
    return min(border, max((position + most) // block * block, position // block * block + block) - request.start)


def causal_piece_end(total: int, begin: int, most: int) -> int:
    """Return where a piece of at most ``most`` of ``total`` tokens ends that starts with token ``begin``."""
    end = begin + most
    if end >= total:
        return total
    # One row alone goes through attention in another way. Of three tokens and room for two all are taken.
    return end if total - end != 1 else end - 1 if most > 2 else total


def _joined(parts: list[Rows]) -> Rows:
    """Return a copy of the rows of several pieces."""
    logits = [part.logits for part in parts if part.logits is not None]
    hidden = [part.hidden for part in parts if part.hidden is not None]
    return Rows(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.probability for part in parts]),
        np.concatenate([part.entropy for part in parts]),
        np.concatenate(logits) if logits else None,
        np.concatenate(hidden) if hidden else None,
    )
