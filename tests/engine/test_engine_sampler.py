"""The sampler against its definition: the filters in NumPy, the draws by their frequencies."""

from __future__ import annotations

import numpy as np
import pytest
from distributions import filtered
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree import _native
from wrinklefree.errors import FormatError, InputError


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 5, 1.0, 0.0),
        (1.3, 0, 0.8, 0.0),
        (1.0, 0, 1.0, 0.2),
        (0.9, 20, 0.7, 0.05),
        (5.0, 3, 0.99, 0.0),
    ],
)
def test_draws_follow_the_filtered_distribution(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = np.random.default_rng(0).normal(size=40).astype(np.float32) * 2
    wanted = filtered(logits, temperature, top_k, top_p, min_p)
    sampler = _native.Sampler(40, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=1)
    draws = 20000
    counts = np.bincount([sampler.sample(logits)[0] for _ in range(draws)], minlength=40)
    assert (counts[wanted == 0] == 0).all()
    # five standard deviations of a binomial count; the seed is fixed, so this passes or fails for good
    assert (np.abs(counts - draws * wanted) <= 5 * np.sqrt(draws * wanted) + 1e-9).all()


@given(
    st.lists(st.integers(-8, 8), min_size=1, max_size=300),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.integers(0, 310),
    st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.integers(0, 2**64 - 1),
)
@settings(max_examples=150, deadline=None)
def test_only_allowed_tokens_are_drawn(
    values: list[int], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    # integers, so that there are many ties: the smaller token comes first
    logits = np.array(values, np.float32)
    allowed = filtered(logits, temperature, top_k, top_p, min_p)
    sampler = _native.Sampler(len(values), temperature, top_k, top_p, min_p, 1.0, seed)
    for _ in range(5):
        token = sampler.sample(logits)[0]
        # A mass that reaches top_p to the last float32 bit may end one token earlier or later.
        looser = filtered(logits, temperature, top_k, min(1.0, top_p * (1 + 1e-5)), min_p)
        assert allowed[token] > 0 or looser[token] > 0


def test_greedy_takes_the_first_best() -> None:
    assert _native.Sampler(4).sample(np.array([1, 3, 3, 2], np.float32))[0] == 1
    # whatever the other filters say
    assert _native.Sampler(4, top_k=1, top_p=0.1, min_p=1.0).sample(np.array([1, 2, 3, 2], np.float32))[0] == 2


def test_draws_are_a_function_of_seed_and_number() -> None:
    logits = np.zeros(1000, np.float32)
    runs = [[_native.Sampler(1000, temperature=1.0, seed=s).sample(logits)[0] for _ in range(1)] for s in range(200)]
    assert len({run[0] for run in runs}) > 150  # seeds that follow each other are not alike
    first, second = (_native.Sampler(1000, temperature=1.0, seed=9) for _ in range(2))
    series = [first.sample(logits)[0] for _ in range(50)]
    assert series == [second.sample(logits)[0] for _ in range(50)]
    assert len(set(series)) > 40


def test_repetition_penalty() -> None:
    # 4 / 2 = 2 falls below 3; -1 * 2 = -2 falls below -1.5
    sampler = _native.Sampler(3, repetition_penalty=2.0)
    sampler.accept(np.array([0, 0], np.int32))
    assert sampler.sample(np.array([4, 3, 0], np.float32))[0] == 1
    assert sampler.sample(np.array([-1, -1.5, -9], np.float32))[0] == 1
    assert _native.Sampler(3, repetition_penalty=2.0).sample(np.array([4, 3, 0], np.float32))[0] == 0
    encouraging = _native.Sampler(3, repetition_penalty=0.5)
    encouraging.accept(np.array([1], np.int32))
    assert encouraging.sample(np.array([4, 3, 0], np.float32))[0] == 1


def test_logprobs_are_of_the_unmodified_logits() -> None:
    logits = np.random.default_rng(3).normal(size=50).astype(np.float32)
    wanted = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    sampler = _native.Sampler(50, temperature=0.5, top_k=3, repetition_penalty=1.5, seed=1)
    sampler.accept(np.array([int(logits.argmax())], np.int32))
    token, logprob, best = sampler.sample(logits, 4)
    assert logprob == pytest.approx(wanted[token], abs=1e-5)
    assert [t for t, _ in best] == np.argsort(-logits)[:4].tolist()
    assert [p for _, p in best] == pytest.approx(wanted[np.argsort(-logits)[:4]], abs=1e-5)
    assert len(sampler.sample(logits, 100)[2]) == 50


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    logits = np.zeros(8, np.float32)
    logits[3] = bad
    everything = np.full(8, bad, np.float32)
    for sampler in (
        _native.Sampler(8),
        _native.Sampler(8, temperature=1.0),
        _native.Sampler(8, temperature=1.0, top_k=2),
    ):
        with pytest.raises(FormatError, match="NaN or infinity"):
            sampler.sample(everything)
        if bad == -np.inf:  # one impossible token is fine
            assert sampler.sample(logits)[0] != 3
        else:
            with pytest.raises(FormatError, match="NaN or infinity"):
                sampler.sample(logits)


def test_extreme_logits_stay_in_range() -> None:
    logits = np.array([3e38, -3e38, 0, 2.9e38], np.float32)
    for temperature in (1e-6, 1.0, 100.0):
        assert _native.Sampler(4, temperature=temperature, seed=2).sample(logits, 2)[0] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
    ],
)
def test_options_are_checked_in_cpp_too(options: dict[str, float]) -> None:
    name = next(iter(options))
    with pytest.raises(InputError, match=f"{name}: found .*, allowed is"):
        _native.Sampler(8, **options)


def test_wrong_arguments() -> None:
    with pytest.raises(InputError, match="vocabulary: found 0"):
        _native.Sampler(0)
    sampler = _native.Sampler(8)
    with pytest.raises(InputError, match="found 9 values, the sampler was made for 8"):
        sampler.sample(np.zeros(9, np.float32))
    with pytest.raises(InputError, match="found 8, allowed are 0 to 7"):
        sampler.accept(np.array([8], np.int32))
