"""Self-speculative decoding of models that are tables: greedy text token by token, sampled text by its distribution.

The decoder is run by the plainest driver there is: each row of a request is computed from the whole text before it.
Frequencies are judged as in test_engine_speculative_sampler.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from distributions import chi_square_chance, filtered, penalized
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree import _native
from wrinklefree.engine.decoding import Decided, Decoder
from wrinklefree.engine.rows import Rows
from wrinklefree.engine.self_speculation import SelfSpeculation
from wrinklefree.engine.windows import FixedWindow, MeasuredWindow, Window

LEVEL = 1e-3
Model = Callable[[Sequence[int]], Any]  # text -> logits float32 [V] for what comes next; MASK at minus infinity


def table_model(vocabulary: int, seed: int, likeness: float) -> Model:
    """A model of the last two tokens; MASK is the last token of the vocabulary.

    Behind MASKs it guesses: where ``likeness`` is 1, as if the most likely tokens stood in their places.
    """
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(vocabulary, vocabulary, vocabulary)).astype(np.float32) * 2
    noise = rng.normal(size=(vocabulary, 12, vocabulary)).astype(np.float32) * 2
    banned = np.where(np.arange(vocabulary) == vocabulary - 1, np.float32(-np.inf), np.float32(0))
    mask = vocabulary - 1

    def logits(text: Sequence[int]) -> Any:
        known = [token for token in text if token != mask]
        masks = len(text) - len(known)
        row = table[known[-2] if len(known) > 1 else 0, known[-1]] + banned
        for _ in range(masks):
            known.append(int(row.argmax()))
            row = table[known[-2], known[-1]] + banned
        share = np.float32(1 if masks == 0 else likeness)
        return (
            row
            if share == 1
            else share * np.maximum(row, -99) + (1 - share) * noise[text[-masks - 1], masks % 12] + banned
        )

    return logits


def run(model: Model, decoder: Decoder, context: int, count: int) -> list[int]:
    """The first ``count`` tokens, or fewer where the context ends."""
    cache: list[int] = []
    answer: list[Decided] = []
    while len(answer) < count:
        request = decoder.request()
        assert decoder.request() is request
        assert request.start <= len(cache) and len(request.tokens) > 0
        cache = cache[: request.start]
        rows = []
        for token in request.tokens.tolist():
            cache.append(token)
            rows.append(model(cache))
        assert len(cache) <= context
        wanted = np.stack(rows if request.want == "all" else rows[-1:])
        none = np.empty(0, np.float32)
        decided = decoder.take(Rows(np.empty(0, np.int32), none, none, wanted))
        assert decided
        answer += decided
        assert len(cache) >= decided[0].position
    return [token.token for token in answer][:count]


def speculate(
    model: Model,
    prompt: Sequence[int],
    window: Window,
    vocabulary: int,
    limit: int,
    context: int = 100_000,
    **options: Any,
) -> tuple[list[int], SelfSpeculation]:
    sampler = _native.Sampler(vocabulary, **options)
    ids = np.array(prompt, np.int32)
    decoder = SelfSpeculation(ids, sampler, vocabulary - 1, window, context, limit)
    return run(model, decoder, context, limit), decoder


def greedy_text(model: Model, prompt: Sequence[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(int(model(text).argmax()))
    return text[len(prompt) :]


def costs(slope: float) -> Any:
    return 1 + slope * np.arange(17)


WINDOWS: dict[str, Callable[[], Window]] = {
    **{str(size): (lambda size=size: FixedWindow(size)) for size in (0, 1, 2, 3, 5, 8)},
    "cheap rows": lambda: MeasuredWindow(costs(0.05)),
    "dear rows": lambda: MeasuredWindow(costs(0.9)),
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("likeness", [0.0, 0.5, 1.0])
def test_greedy_text_is_that_of_decoding_token_by_token(window: str, likeness: float) -> None:
    for seed, vocabulary in enumerate((3, 7, 40)):
        model = table_model(vocabulary, seed, likeness)
        prompt = [seed % (vocabulary - 1)] * (seed + 1)
        text, decoder = speculate(model, prompt, WINDOWS[window](), vocabulary, 120)
        assert text == greedy_text(model, prompt, 120)
        assert decoder.forwards == 120 - decoder.accepted
        if likeness == 1.0 and window not in ("0", "dear rows"):
            assert decoder.accepted == decoder.proposed > 0 and decoder.forwards < 90


@given(
    st.integers(0, 10**6), st.integers(1, 9), st.integers(0, 8), st.integers(1, 30), st.integers(0, 30),
    st.sampled_from([0.0, 0.7, 1.0]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_limits_and_the_end_of_the_context(
    seed: int, length: int, window: int, limit: int, room: int, likeness: float
) -> None:
    model, context = table_model(6, seed % 5, likeness), length + room
    prompt = np.random.default_rng(seed).integers(0, 5, length).tolist()
    count = min(limit, room + 1)  # the last token needs no position
    text, decoder = speculate(model, prompt, FixedWindow(window), 6, count, context)
    assert text == greedy_text(model, prompt, count)
    # nothing is proposed that nobody can want: the last token comes from the row before it
    assert decoder.proposed <= max(0, count - 2) * max(1, window)
    assert decoder.forwards == count - decoder.accepted


def exact(model: Model, prompt: Sequence[int], count: int, vocabulary: int, penalty: float, filters: Any) -> Any:
    """The probabilities float64 [V ** count] of all texts of ``count`` tokens, decoded token by token."""
    out = np.ones((vocabulary,) * count)
    for text in itertools.product(range(vocabulary), repeat=count):
        for number, token in enumerate(text):
            if token == vocabulary - 1:
                out[text] = 0
                break
            before = [*prompt, *text[:number]]
            out[text] *= filtered(penalized(model(before), penalty, before), **filters)[token]
    return out.ravel()


SAMPLED: dict[str, tuple[float, dict[str, Any]]] = {
    "plain": (1.0, {"temperature": 1.0}),
    "all filters": (1.4, {"temperature": 1.2, "top_k": 4, "top_p": 0.9, "min_p": 0.02}),
}


def text_counts(make: Callable[[int], list[int]], vocabulary: int, draws: int) -> Any:
    texts = np.array([make(seed) for seed in range(draws)])
    codes = texts @ vocabulary ** np.arange(texts.shape[1])[::-1]
    return np.bincount(codes, minlength=vocabulary ** texts.shape[1])


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("window", ["1", "3", "cheap rows"])
def test_sampled_texts_have_the_distribution_of_decoding_token_by_token(window: str, name: str) -> None:
    penalty, filters = SAMPLED[name]
    model = table_model(5, 3, 0.7)
    accepted = 0

    def make(seed: int) -> list[int]:
        nonlocal accepted
        options = {**filters, "repetition_penalty": penalty, "seed": seed}
        text, decoder = speculate(model, [0, 2], WINDOWS[window](), 5, 7, **options)
        accepted += decoder.accepted
        return text[:4]

    counts = text_counts(make, 5, 1500)
    assert accepted > 500  # or there would be nothing to test
    assert chi_square_chance(counts, exact(model, [0, 2], 4, 5, penalty, filters)) > LEVEL


class _Careless:
    """A sampler that accepts every proposal."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def verify(self, row: Any, proposal: Any, logprobs: int) -> tuple[bool, int, float, list[Any]]:
        return True, proposal.token, 0.0, []


def test_the_test_of_texts_has_power() -> None:
    model = table_model(5, 3, 0.7)

    def make(seed: int) -> list[int]:
        sampler = _Careless(_native.Sampler(5, temperature=1.0, seed=seed))
        decoder = SelfSpeculation(np.array([0, 2], np.int32), sampler, 4, FixedWindow(3), 100, 7)
        return run(model, decoder, 100, 7)[:4]

    assert chi_square_chance(text_counts(make, 5, 1500), exact(model, [0, 2], 4, 5, 1.0, {"temperature": 1.0})) < 1e-6


def test_without_masks_a_seed_gives_the_text_of_plain_sampling() -> None:
    model = table_model(20, 1, 0.5)
    text, _ = speculate(model, [3], FixedWindow(0), 20, 50, temperature=1.0, seed=8)
    sampler, plain = _native.Sampler(20, temperature=1.0, seed=8), [3]
    for _ in range(50):
        plain.append(sampler.sample(model(plain))[0])
    assert text == plain[1:]
    with_window, _ = speculate(model, [3], FixedWindow(4), 20, 50, temperature=1.0, seed=8)
    again, _ = speculate(model, [3], FixedWindow(4), 20, 50, temperature=1.0, seed=8)
    assert with_window == again


def test_logprobs_and_guesses() -> None:
    model = table_model(9, 2, 1.0)
    decoder = SelfSpeculation(np.array([1], np.int32), _native.Sampler(9), 8, FixedWindow(3), 100, 30, logprobs=2)
    none = np.empty(0, np.float32)
    text, cache = [1], list[int]()
    while len(text) < 12:
        guesses, request = decoder.waiting(), decoder.request()
        assert [guess.token for guess in guesses] == request.tokens[1 : 1 + len(guesses)].tolist() or not cache
        cache = cache[: request.start]
        rows = []
        for token in request.tokens.tolist():
            cache.append(token)
            rows.append(model(cache))
        decided = decoder.take(Rows(np.empty(0, np.int32), none, none, np.stack(rows)))
        for token in decided:
            row = model(text).astype(np.float64)
            wanted = row - np.log(np.exp(row).sum())
            assert token.position == len(text)
            assert token.logprob == pytest.approx(wanted[token.token], abs=1e-5)
            assert [t for t, _ in token.best] == np.argsort(-row)[:2].tolist()
            text.append(token.token)
        assert [guess.position for guess in decoder.waiting()] == [len(text) + i for i in range(len(decoder.waiting()))]
    assert decoder.accepted > 0
