"""Penalties, biases and masks: the native sampler against NumPy, and answers in all modes against their definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusion_models import make_diffusion_toy
from distributions import chi_square_chance, filtered, penalized
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree import _native
from wrinklefree.engine import DecodingSettings, Engine, SamplingParams
from wrinklefree.errors import InputError

QUARTERS = st.integers(-32, 32)  # of a unit: sums and halves of such logits are exact in float32
CAUSAL = {"variant": "causal", "clean_half": "causal", "token_shift": True}


def mask_of(allowed: Any, vocabulary: int) -> Any:
    bits = np.zeros(-(-vocabulary // 32) * 32, np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    size = draw(st.integers(2, 70))
    token = st.integers(0, size - 1)
    return {
        "logits": np.array(draw(st.lists(QUARTERS, min_size=size, max_size=size)), np.float32) / 4,
        "prompt": draw(st.lists(token, max_size=5)),
        "answer": draw(st.lists(token, max_size=8)),
        "repetition": draw(st.sampled_from([1.0, 0.5, 2.0])),
        "presence": draw(QUARTERS) / 16,
        "frequency": draw(QUARTERS) / 16,
        "bias": draw(st.dictionaries(token, st.integers(-400, 400).map(lambda n: n / 4), max_size=4)),
        "allowed": draw(st.none() | st.sets(token, min_size=1)),
    }


def wanted_logits(case: dict[str, Any], guesses: Any = ()) -> Any:
    answer = [*case["answer"], *guesses]
    out = penalized(
        case["logits"], case["repetition"], [*case["prompt"], *answer], case["presence"], case["frequency"], answer,
        case["bias"].items(),
    )  # fmt: skip
    if case["allowed"] is not None:
        out[[token not in case["allowed"] for token in range(len(out))]] = -np.inf
    return out


def make_sampler(case: dict[str, Any], **options: Any) -> Any:
    sampler = _native.Sampler(
        len(case["logits"]), repetition_penalty=case["repetition"], presence_penalty=case["presence"],
        frequency_penalty=case["frequency"], bias=list(case["bias"].items()), **options,
    )  # fmt: skip
    sampler.accept(np.array(case["prompt"], np.int32), prompt=True)
    for token in case["answer"]:
        sampler.accept(np.array([token], np.int32))
    return sampler


@given(cases())
@settings(max_examples=120, deadline=None)
def test_the_best_token_and_the_distribution_are_those_of_the_definition(case: dict[str, Any]) -> None:
    mask = None if case["allowed"] is None else mask_of(case["allowed"], len(case["logits"]))
    assert make_sampler(case).sample(case["logits"], mask=mask)[0] == int(wanted_logits(case).argmax())
    case["allowed"] = None  # proposals know no masks
    for options in ({"temperature": 1.0}, {"temperature": 0.5, "top_k": 3}):
        proposal = make_sampler(case, **options).propose(case["logits"])
        wanted = filtered(wanted_logits(case), **options)
        near = wanted[proposal.ids]
        np.testing.assert_allclose(proposal.probabilities, near, rtol=1e-4, atol=1e-12)
        assert near.sum() > 1 - 1e-6


@given(cases())
@settings(max_examples=60, deadline=None)
def test_further_proposals_count_the_former(case: dict[str, Any]) -> None:
    case["allowed"] = None
    sampler, guesses = make_sampler(case), []
    for _ in range(4):
        guesses.append(sampler.propose(case["logits"]).token)
        assert guesses[-1] == int(wanted_logits(case, guesses[:-1]).argmax())
    assert sampler.sample(case["logits"])[0] == int(wanted_logits(case).argmax())  # what was only proposed is forgotten


def test_a_verified_token_has_the_distribution_that_penalties_and_bias_leave() -> None:
    p, q = np.array([3, 2, 1, 0, -1, 0], np.float32), np.array([0, 1, 2, 3, 0, 0], np.float32)
    case = {"logits": p, "prompt": [5], "answer": [0, 0, 1], "repetition": 1.3, "presence": 0.5, "frequency": 0.7,
            "bias": {3: 1.5, 1: -1.0}, "allowed": None}  # fmt: skip
    sampler = make_sampler(case, temperature=0.9, top_p=0.97, seed=4)

    def step() -> int:
        token = sampler.verify(p, sampler.propose(q))[1]
        sampler.accept(np.zeros(0, np.int32))  # forgets the proposal
        return int(token)

    counts = np.bincount([step() for _ in range(6000)], minlength=6)
    assert chi_square_chance(counts, filtered(wanted_logits(case), 0.9, top_p=0.97)) > 1e-3


def test_the_prompt_is_no_part_of_the_answer() -> None:
    logits = np.array([2, 1.5], np.float32)
    sampler = _native.Sampler(2, presence_penalty=1.0)
    sampler.accept(np.array([0, 0], np.int32), prompt=True)
    assert sampler.sample(logits)[0] == 0
    sampler.accept(np.array([0], np.int32))
    assert sampler.sample(logits)[0] == 1


def test_draws_under_a_mask() -> None:
    logits = np.random.default_rng(5).normal(size=100).astype(np.float32)
    allowed = [3, 31, 32, 64, 99]
    sampler = _native.Sampler(100, temperature=1.0, top_k=50, seed=1)
    counts = np.bincount([sampler.sample(logits, mask=mask_of(allowed, 100))[0] for _ in range(3000)], minlength=100)
    masked = np.where(np.isin(np.arange(100), allowed), logits, -np.inf)
    assert chi_square_chance(counts, filtered(masked, 1.0)) > 1e-3
    token, logprob, best = sampler.sample(logits, 1, mask_of([7], 100))
    assert token == 7 and logprob == pytest.approx(logits[7] - np.log(np.exp(logits).sum()), abs=1e-5)
    assert best[0][0] == int(logits.argmax())  # logprobs are those of the model


def test_masks_that_cannot_be() -> None:
    sampler = _native.Sampler(40)
    with pytest.raises(InputError, match="mask: found 1 words, a vocabulary of 40 has 2"):
        sampler.sample(np.zeros(40, np.float32), mask=np.zeros(1, np.uint32))
    banned = np.zeros(40, np.float32)
    banned[3] = -np.inf
    with pytest.raises(InputError, match="mask: found no token that is allowed and that the model can give"):
        sampler.sample(banned, mask=mask_of([3], 40))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("presence_penalty", 2.1, "presence_penalty: found 2.1, allowed is a number from -2.0 to 2.0"),
        ("frequency_penalty", float("nan"), "frequency_penalty: found nan"),
        ("logit_bias", {3: 101}, "logit_bias: found 101, allowed is a number from -100.0 to 100.0"),
        ("logit_bias", {-1: 1}, "logit_bias: found -1, allowed is an integer"),
        ("logit_bias", {token: 1 for token in range(1025)}, "logit_bias: found 1025 tokens, at most 1024"),
    ],
)
def test_parameters_are_checked(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingParams(**{field: value})


class _Alternating:
    """Allows 5 and 6 in turn; complete behind so many tokens."""

    def __init__(self, length: int) -> None:
        self.accepted: list[int] = []
        self._length = length

    @property
    def finished(self) -> bool:
        return len(self.accepted) == self._length

    def mask(self) -> Any:
        return mask_of([5 + len(self.accepted) % 2], 256)

    def accept(self, token: int) -> None:
        self.accepted.append(token)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(make_diffusion_toy(tmp_path_factory.mktemp("toy"), "causal"), threads=1, context=200, slots=2)


def plain(count: int, **changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": count, "temperature": 0.0, "ignore_eos": True, "seed": 1, **changes})


def test_an_answer_keeps_to_its_constraint_and_ends_with_it(engine: Engine) -> None:
    rule = _Alternating(7)
    answer = engine.generate([1, 2, 3], plain(50), constraint=rule).run()
    assert (answer.mode, answer.tokens, answer.finish_reason) == ("ar", [5, 6, 5, 6, 5, 6, 5], "stop")
    assert rule.accepted == answer.tokens
    cut = engine.generate([1, 2, 3], plain(4, temperature=1.0), constraint=_Alternating(7)).run()
    assert (cut.tokens, cut.finish_reason) == ([5, 6, 5, 6], "length")


@pytest.mark.parametrize("mode", ["block", "speculative"])
def test_other_modes_refuse_constraints(engine: Engine, mode: str) -> None:
    with pytest.raises(InputError, match=f"mode {mode}: an answer with a constraint .* use mode ar or auto"):
        engine.generate([1], plain(4), DecodingSettings(mode=mode), constraint=_Alternating(2))


CHANGES: dict[str, Any] = {"presence_penalty": 1.5, "frequency_penalty": 0.75, "repetition_penalty": 1.1,
                           "logit_bias": {17: 4.0, 40: -100, 99: 2.5}}  # fmt: skip


def test_greedy_answers_are_those_of_the_definition(engine: Engine) -> None:
    prompt, text = [3, 1, 4, 1, 5], [3, 1, 4, 1, 5]
    for _ in range(30):
        logits = engine.logits(text)[-1]
        answer = text[len(prompt) :]
        changed = penalized(logits, 1.1, text, 1.5, 0.75, answer, CHANGES["logit_bias"].items())
        text.append(int(changed.argmax()))
    found = engine.generate(prompt, plain(30, **CHANGES), DecodingSettings(mode="ar")).run()
    assert found.tokens == text[len(prompt) :]
    assert found.tokens != engine.generate(prompt, plain(30), DecodingSettings(mode="ar")).run().tokens


@pytest.mark.parametrize("window", [1, 4])
def test_speculative_answers_are_those_of_mode_ar(engine: Engine, window: int) -> None:
    for length in (2, 30):
        prompt = np.random.default_rng(length).integers(1, 250, length)
        wanted = engine.generate(prompt, plain(60, **CHANGES), DecodingSettings(mode="ar")).run().tokens
        found = engine.generate(prompt, plain(60, **CHANGES), DecodingSettings(mode="speculative", window=window)).run()
        assert found.tokens == wanted


def test_blocks_know_biases_and_penalties(engine: Engine) -> None:
    block = DecodingSettings(mode="block")
    free = engine.generate([1, 2, 3], plain(24), block).run().tokens
    banned = {token: -100.0 for token in set(free)}
    assert not set(engine.generate([1, 2, 3], plain(24, logit_bias=banned), block).run().tokens) & set(free)
    assert engine.generate([1, 2, 3], plain(9, logit_bias={77: 100.0}), block).run().tokens == [77] * 9
    # one token a pass, from the left: what is decided is known to the next
    slow = DecodingSettings(mode="block", threshold=1.0)
    repelled = engine.generate([1, 2, 3], plain(24, frequency_penalty=2.0, presence_penalty=2.0), slow).run().tokens
    calm = engine.generate([1, 2, 3], plain(24), slow).run().tokens
    assert repelled != calm


def test_a_biased_token_outside_the_vocabulary(engine: Engine) -> None:
    with pytest.raises(InputError, match="logit_bias: found token 256, allowed are 0 to 255"):
        engine.generate([1], plain(1, logit_bias={256: 1.0}))
