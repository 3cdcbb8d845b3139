"""Proposals and their verification: each step against its definition in NumPy, and whole draws by their frequencies.

Frequencies are judged by Pearson's chi-square test at a level of 0.001. Seeds are fixed, so a test passes or fails for
good. That the test tells right from wrong is itself tested, with two wrong rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from distributions import chi_square_chance, chi_square_tail, filtered, penalized
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wrinklefree import _native
from wrinklefree.errors import FormatError, InputError

TOKENS, PROPOSALS, TESTS = (stream << 56 for stream in range(3))  # where the sampler's random numbers begin
LEVEL = 1e-3
CLOSE = 1e-5  # float32 sums against float64 ones: cases nearer to a border than this are not decided here
QUARTERS = st.integers(-32, 32)  # of a unit: logits are equal, or well apart


def inside(part: float, weights: Any) -> tuple[int, bool]:
    """The outcome at ``part`` of the mass of ``weights`` [n], and whether it is clear of the borders."""
    edges = np.cumsum(weights) / np.sum(weights)
    at = int(np.searchsorted(edges, part, side="right"))
    return at, bool((np.abs(edges - part) > CLOSE).all())


def steady(logits: Any, options: dict[str, Any]) -> Any:
    """The filtered probabilities, where rounding does not change which tokens are left."""
    found = filtered(logits, **options)
    for factor in (1 - CLOSE, 1 + CLOSE):
        near = {**options, "top_p": min(1.0, options["top_p"] * factor), "min_p": options["min_p"] * factor}
        assume(((filtered(logits, **near) > 0) == (found > 0)).all())
    return found


@st.composite
def cases(draw: Any) -> tuple[Any, Any, dict[str, Any], int]:
    one = np.array(draw(st.lists(QUARTERS, min_size=2, max_size=40)), np.float32) / 4
    other = np.array(draw(st.lists(QUARTERS, min_size=len(one), max_size=len(one))), np.float32) / 4
    options = {
        "temperature": draw(st.sampled_from([0.0, 0.4, 1.0, 2.5])),
        "top_k": draw(st.integers(0, 20)),
        "top_p": draw(st.sampled_from([0.3, 0.9, 1.0])),
        "min_p": draw(st.sampled_from([0.0, 0.03])),
    }
    return one, other, options, draw(st.integers(0, 2**64 - 1))


@given(cases())
@settings(max_examples=300, deadline=None)
def test_a_proposal_is_a_draw_and_its_distribution(case: tuple[Any, Any, dict[str, Any], int]) -> None:
    logits, _, options, seed = case
    wanted = steady(logits, options)
    sampler = _native.Sampler(len(logits), **options, seed=seed)
    for number in range(3):
        proposal = sampler.propose(logits)
        assert proposal.ids.tolist() == np.flatnonzero(wanted).tolist()
        np.testing.assert_allclose(proposal.probabilities, wanted[proposal.ids], rtol=2e-5)
        at, clear = inside(_native.uniform(seed, PROPOSALS + number), wanted)
        assert proposal.token == at or not clear


@given(cases())
@settings(max_examples=300, deadline=None)
def test_verification_is_the_rule_of_speculative_sampling(case: tuple[Any, Any, dict[str, Any], int]) -> None:
    logits, others, options, seed = case
    p, q = steady(logits, options), steady(others, options)
    sampler = _native.Sampler(len(logits), **options, seed=seed)
    left, rejected = np.maximum(p - q, 0), 0
    for number in range(4):
        proposal = sampler.propose(others)
        accepted, token, _, _ = sampler.verify(logits, proposal)
        asked = _native.uniform(seed, TESTS + number) * q[proposal.token]
        if options["temperature"] == 0 or abs(asked - p[proposal.token]) > CLOSE:
            assert accepted == (p[proposal.token] > 0 if options["temperature"] == 0 else asked < p[proposal.token])
        if accepted:
            assert token == proposal.token
            continue
        if left.sum() > 1e-3:
            at, clear = inside(_native.uniform(seed, TOKENS + rejected), left)
            assert token == at or not clear
        assert p[token] > 0
        rejected += 1


def test_a_filtered_token_never_comes_out() -> None:
    # p and q differ in one token of hardly any mass, which p excludes: what is left of p - q is rounding, or nothing
    p = np.array([3.0, 2.0, 1.0, -13.0], np.float32)
    sampler = _native.Sampler(4, temperature=1.0, min_p=1e-6, seed=3)
    wide = _native.Sampler(4, temperature=1.0, seed=3).propose(p)
    certain = _native.Proposal(3, wide.ids, wide.probabilities)
    for _ in range(2000):
        accepted, token, _, _ = sampler.verify(p, certain)
        assert not accepted and token != 3


PAIRS = {
    "the same": ([2, 1, 0, -1, -2, 0.5, 1.5, 0], [2, 1, 0, -1, -2, 0.5, 1.5, 0]),
    "turned around": ([3, 2, 1, 0, -1, -2, -3, -4], [-4, -3, -2, -1, 0, 1, 2, 3]),
    "a flat proposal": ([4, 3, 1, 0, 0, -2, -3, 0], [0, 0, 0, 0, 0, 0, 0, 0]),
    "a sure proposal": ([1, 0.5, 0, 0, 0, -1, -1, 2], [0, 0, 0, 30, 0, 0, 0, 0]),
    "a flat target": ([0, 0, 0, 0, 0, 0, 0, 0], [5, 4, 0, 0, 0, 0, 0, 0]),
    "nothing in common": ([2, 1, 0, 0, -90, -90, -90, -90], [-90, -90, -90, -90, 0, 1, 2, 0]),
}
FILTERS: dict[str, dict[str, Any]] = {
    "none": {"temperature": 1.0},
    "temperature": {"temperature": 0.6},
    "top-k": {"temperature": 1.2, "top_k": 4},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "min-p": {"temperature": 1.5, "min_p": 0.2},
    "all": {"temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.05},
}


def frequencies(step: Callable[[], int], draws: int, size: int) -> Any:
    return np.bincount([step() for _ in range(draws)], minlength=size)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", FILTERS)
def test_one_step_has_the_distribution_of_the_target(pair: str, name: str) -> None:
    p, q = (np.array(values, np.float32) for values in PAIRS[pair])
    sampler = _native.Sampler(len(p), **FILTERS[name], seed=11)
    counts = frequencies(lambda: sampler.verify(p, sampler.propose(q))[1], 6000, len(p))
    assert chi_square_chance(counts, filtered(p, **FILTERS[name])) > LEVEL


def test_the_penalty_of_a_step() -> None:
    p, q = (np.array(values, np.float32) for values in PAIRS["turned around"])
    options = {"temperature": 1.0, "top_p": 0.95}
    sampler = _native.Sampler(len(p), **options, repetition_penalty=1.7, seed=5)
    sampler.accept(np.array([0, 2], np.int32))
    target = filtered(penalized(p, 1.7, [0, 2]), **options)

    def step() -> int:
        token: int = sampler.verify(p, sampler.propose(q))[1]
        sampler.accept(np.array([0], np.int32))  # forgets the proposal, which nobody took
        return token

    assert chi_square_chance(frequencies(step, 6000, len(p)), target) > LEVEL


@pytest.mark.parametrize("wrong", ["accept everything", "draw the substitute from p"])
def test_the_test_has_power(wrong: str) -> None:
    p, q = (np.array(values, np.float32) for values in PAIRS["a flat proposal"])
    sampler = _native.Sampler(len(p), temperature=1.0, seed=11)
    target = filtered(p, 1.0)

    def step() -> int:
        proposal = sampler.propose(q)
        accepted, token, _, _ = sampler.verify(p, proposal)
        if wrong == "accept everything":
            return int(proposal.token)
        if wrong == "draw the substitute from p" and not accepted:
            return int(sampler.sample(p)[0])
        return int(token)

    assert chi_square_chance(frequencies(step, 6000, len(p)), target) < 1e-6


def test_the_tail_of_chi_square() -> None:
    # from tables of the distribution
    for freedom, critical in ((1, 10.828), (2, 13.816), (5, 20.515), (10, 29.588), (15, 37.697)):
        assert chi_square_tail(critical, freedom) == pytest.approx(1e-3, rel=1e-3)
    for freedom, critical in ((1, 3.841), (4, 9.488), (7, 14.067)):
        assert chi_square_tail(critical, freedom) == pytest.approx(0.05, rel=1e-3)


def test_further_proposals_know_of_the_former_and_the_target_does_not() -> None:
    # 5 / 2 falls below 4, and 4 / 2 below 3
    logits = np.array([5, 4, 3, 0], np.float32)
    sampler = _native.Sampler(4, repetition_penalty=2.0)
    assert [sampler.propose(logits).token for _ in range(3)] == [0, 1, 2]
    assert sampler.sample(logits)[0] == 0
    assert sampler.verify(logits, _native.Proposal(1, [1], [1.0]))[:2] == (False, 0)
    sampler.accept(np.array([0], np.int32))  # now 0 is of the text, and 1 and 2 are forgotten
    assert sampler.propose(logits).token == 1
    assert sampler.verify(logits, _native.Proposal(1, [1], [1.0]))[:2] == (True, 1)


def test_sampling_does_not_depend_on_proposals_in_between() -> None:
    logits = np.random.default_rng(2).normal(size=300).astype(np.float32)
    plain, busy = (_native.Sampler(300, temperature=1.0, seed=7) for _ in range(2))
    wanted = [plain.sample(logits)[0] for _ in range(40)]
    found = []
    for _ in range(40):
        proposals = [busy.propose(logits) for _ in range(3)]
        assert busy.verify(logits, proposals[0])[0]  # p = q: always accepted
        found.append(busy.sample(logits)[0])
    assert found == wanted


def test_verification_reports_logprobs_of_the_unmodified_logits() -> None:
    logits = np.random.default_rng(3).normal(size=50).astype(np.float32)
    wanted = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    sampler = _native.Sampler(50, temperature=0.5, top_k=3, seed=1)
    for token in (int(logits.argmax()), int(logits.argmin())):
        accepted, chosen, logprob, best = sampler.verify(logits, _native.Proposal(token, [token], [1.0]), 2)
        assert chosen == token or not accepted
        assert logprob == pytest.approx(wanted[chosen], abs=1e-5)
        assert [t for t, _ in best] == np.argsort(-logits)[:2].tolist()


def test_banned_tokens_are_never_proposed() -> None:
    logits = np.array([-np.inf, 0, 1, -np.inf], np.float32)
    sampler = _native.Sampler(4, temperature=100.0, repetition_penalty=3.0, seed=0)
    sampler.accept(np.array([0, 3], np.int32))
    for _ in range(50):
        proposal = sampler.propose(logits)
        assert proposal.ids.tolist() == [1, 2]
        assert sampler.verify(logits, _native.Proposal(3, [3], [1.0]))[0] is False


@pytest.mark.parametrize(
    ("token", "ids", "chances"),
    [
        (1, [], []),
        (1, [1, 1], [0.5, 0.5]),
        (2, [2, 1], [0.5, 0.5]),
        (0, [1], [1.0]),
        (1, [-1, 1], [0.5, 0.5]),
        (1, [1], []),
    ],
)
def test_what_is_no_proposal(token: int, ids: list[int], chances: list[float]) -> None:
    with pytest.raises(InputError, match="rising token ids with a probability each"):
        _native.Proposal(token, ids, chances)


def test_wrong_arguments() -> None:
    sampler, logits = _native.Sampler(8, temperature=1.0), np.zeros(8, np.float32)
    with pytest.raises(InputError, match="another vocabulary, the sampler was made for 8"):
        sampler.verify(logits, _native.Proposal(8, [8], [1.0]))
    for call in (sampler.propose, lambda row: sampler.verify(row, _native.Proposal(1, [1], [1.0]))):
        with pytest.raises(InputError, match="found 9 values, the sampler was made for 8"):
            call(np.zeros(9, np.float32))
        with pytest.raises(FormatError, match="NaN or infinity"):
            call(np.full(8, np.nan, np.float32))
