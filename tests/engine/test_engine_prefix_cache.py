"""A prompt that begins like an earlier one: less is computed, and not a bit of the answer differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusion_models import make_diffusion_toy
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import make_toy

from wrinklefree.engine import DecodingSettings, Engine, Generation, SamplingParams, Together
from wrinklefree.engine.decoding import PIECE_TOKENS, Request
from wrinklefree.engine.prefix_cache import LEAST, rule_of, shared, usable

AR = DecodingSettings(mode="ar")
BLOCK = DecodingSettings(mode="block", threshold=0.05)
SPECULATIVE = DecodingSettings(mode="speculative", window=3)
# toys and the modes they have; each with another cache of keys and values
DIFFUSION = {
    "causal": ("float16", [AR, BLOCK, SPECULATIVE]),
    "fast_dllm": ("int8", [AR, BLOCK]),
    "fast_dllm_causal_text": ("float32", [AR, BLOCK]),
    "causal_block_text": ("float16", [AR, BLOCK]),
    "llada": ("int8", [AR, BLOCK]),
}
PLAIN = {"qwen3": "float16", "gemma3": "int8", "mistral_window": "float32", "untied_f16_head": "int8"}
SLOTS = 5


@pytest.fixture(scope="module", params=[*DIFFUSION, *PLAIN])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    directory = tmp_path_factory.mktemp("cache") / request.param
    if request.param in PLAIN:
        kv_type = PLAIN[request.param]
        make_toy(directory, request.param)
    else:
        kv_type = DIFFUSION[request.param][0]
        make_diffusion_toy(directory, request.param, 8)
    return Engine.load(directory, threads=1, context=512, slots=SLOTS, kv_type=kv_type)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(make_toy(tmp_path_factory.mktemp("plain") / "toy", "llama_tensor"), threads=1, slots=3)


def modes_of(engine: Engine) -> list[DecodingSettings]:
    marker = engine.config["wrinklefree"].get("dlm")
    if marker is None:
        return [AR]
    return (
        [AR, BLOCK, SPECULATIVE] if (marker["variant"], marker["clean_half"]) == ("causal", "causal") else [AR, BLOCK]
    )


def some(length: int, seed: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(2, 200, length).tolist()
    return tokens


def greedy_with_logprobs(count: int = 6) -> SamplingParams:
    """What is compared then is not only the token but the numbers it comes from."""
    return SamplingParams(max_tokens=count, temperature=0.0, logprobs=5, ignore_eos=True, seed=0)


def drawn(count: int = 6) -> SamplingParams:
    return SamplingParams(max_tokens=count, temperature=1.0, logprobs=3, ignore_eos=True, seed=11)


def all_of(generation: Generation) -> list[Any]:
    return [(step.token, step.logprob, step.best, step.forwards) for step in generation]


class Cached:
    """Answers of an engine whose slots keep what they hold; a slot is free for the engine alone."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        self.engine = engine
        with engine._slot():
            self.together = Together(engine, cache=engine.slots, **options)

    def __enter__(self) -> Cached:
        return self

    def __exit__(self, *_: object) -> None:
        self.together.close()
        assert len(self.engine._free) == self.engine.slots

    def check(self, prompt: list[int], params: SamplingParams, mode: DecodingSettings) -> int:
        """Compare an answer with the one of an empty slot; return how many tokens were not computed."""
        generation = self.together.add(prompt, params, mode)
        assert all_of(generation) == all_of(self.engine.generate(prompt, params, mode)), (len(prompt), mode.mode)
        return generation.cached_tokens


def test_a_warm_cache_changes_no_bit(engine: Engine) -> None:
    # In each mode: again, longer, shorter, another end, the answer and more, a prompt that another rule has computed.
    with Cached(engine) as cached:
        for mode in modes_of(engine):
            base = some(70, 1)
            hits = []
            for params in (greedy_with_logprobs(), drawn()):
                answer = engine.generate(base, params, mode).run().tokens
                prompts = [base, base, base + some(40, 2), base[:41], base[:50] + some(9, 3), base[:49], base + answer]
                prompts += [base + answer + some(3, 4), base[:33] + some(1, 5), base[:1], some(300, 6), some(300, 6)]
                hits += [cached.check(prompt, params, mode) for prompt in prompts]
            assert sum(hit > 0 for hit in hits) >= 12, hits


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_order_of_prompts_and_any_company(engine: Engine, data: st.DataObject) -> None:
    # Prompts from a tree of few beginnings, several at a time, some broken off, pieces of any size.
    modes = modes_of(engine)
    trunk = some(120, 7)
    rooms = {"most": data.draw(st.integers(16, 64)), "most_beside": data.draw(st.integers(8, 64))}
    requests = []
    for number in range(data.draw(st.integers(2, 7))):
        length, more = data.draw(st.integers(1, 120)), data.draw(st.integers(0, 20))
        params = data.draw(st.sampled_from([greedy_with_logprobs(5), drawn(5)]))
        requests.append((trunk[:length] + some(more, number % 3), params, data.draw(st.sampled_from(modes))))
    gone = data.draw(st.sets(st.integers(0, len(requests) - 1)))
    starts = data.draw(st.lists(st.integers(0, 3), min_size=len(requests), max_size=len(requests)))
    with Cached(engine, **rooms) as cached:
        running: list[tuple[int, Generation]] = []
        found: dict[int, list[Any]] = {}
        for number, (request, passes) in enumerate(zip(requests, starts, strict=True)):
            running.append((number, cached.together.add(*request)))
            for _ in range(passes):
                cached.together.run()
            if number in gone:
                running.pop()[1].close()
        while cached.together.run():
            pass
        for number, generation in running:
            found[number] = [(step.token, step.logprob, step.best, step.forwards) for step in generation.ready()]
    for number, answer in found.items():
        assert answer == all_of(engine.generate(*requests[number])), number


def counting(cached: Cached) -> list[dict[int, int]]:
    """Return the list that will have the tokens of each pass, by slot."""
    passes: list[dict[int, int]] = []
    pieces = cached.together._passes._pieces

    def counted() -> Any:
        found = pieces()
        passes.append({job.slot: end - begin for job, _, begin, end in found})
        return found

    cached.together._passes._pieces = counted  # type: ignore[method-assign]
    return passes


def test_only_the_rest_of_a_prompt_is_computed(plain: Engine) -> None:
    with Cached(plain) as cached:
        passes = counting(cached)
        assert cached.check(some(200, 1), greedy_with_logprobs(2), AR) == 0
        assert cached.check(some(200, 1) + some(30, 2), greedy_with_logprobs(2), AR) == 200
        assert cached.check(some(200, 1), greedy_with_logprobs(2), AR) == 198  # a lone row would be another one
        assert [sum(each.values()) for each in passes] == [200, 1, 30, 1, 2, 1]


def test_rows_that_were_decoded_alone_serve_no_prompt(engine: Engine) -> None:
    # What differs in the last bit of a state seldom shows in a token: here it is the count that must be right.
    base = some(72, 1)
    for mode in modes_of(engine):
        params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True, seed=0)
        with Cached(engine) as cached:
            answer = cached.together.add(base, params, mode).run().tokens
            hit = cached.check(base + answer, greedy_with_logprobs(2), mode)
        if mode.mode != "block":
            assert hit == 72
        else:
            assert 72 < hit <= 72 + len(answer)  # finished blocks are computed in company


def test_answers_to_one_prompt_compute_it_once(plain: Engine) -> None:
    prompt = some(300, 3)
    with Cached(plain, most=64) as cached:
        passes = counting(cached)
        params = [SamplingParams(max_tokens=4, temperature=1.0, seed=seed) for seed in range(2)]
        both = [cached.together.add(prompt, each, AR) for each in params]
        assert [each.run().tokens for each in both] == [
            plain.generate(prompt, each, AR).run().tokens for each in params
        ]
        assert sorted(each.cached_tokens for each in both) == [0, 298]
        assert sum(sum(each.values()) for each in passes) == 300 + 2 + 2 * 3


def test_a_prompt_whose_elder_is_broken_off_goes_on_alone(plain: Engine) -> None:
    prompt = some(300, 3)
    with Cached(plain, most=64) as cached:
        elder, younger = (cached.together.add(prompt, greedy_with_logprobs(3), AR) for _ in range(2))
        cached.together.run()
        elder.close()
        assert all_of(younger) == all_of(plain.generate(prompt, greedy_with_logprobs(3), AR))
        assert younger.cached_tokens == 64


def test_a_busy_slot_serves_others_and_keeps_its_own(plain: Engine) -> None:
    with Cached(plain) as cached:
        long = cached.together.add(some(100, 1), greedy_with_logprobs(20), AR)
        first = [next(long) for _ in range(3)]
        assert cached.check(some(100, 1) + some(20, 2), greedy_with_logprobs(3), AR) == 100
        steps = [(step.token, step.logprob, step.best, step.forwards) for step in [*first, *long]]
        assert steps == all_of(plain.generate(some(100, 1), greedy_with_logprobs(20), AR))


def test_the_slot_unused_for_longest_is_given_away_and_copies_first(plain: Engine) -> None:
    with Cached(plain) as cached:  # two slots for four beginnings
        for seed in (1, 2):
            cached.check(some(50, seed), greedy_with_logprobs(1), AR)
        assert cached.check([*some(50, 1), 5], greedy_with_logprobs(1), AR) == 49
        cached.check(some(50, 3), greedy_with_logprobs(1), AR)  # in place of 2
        assert cached.check(some(50, 2), greedy_with_logprobs(1), AR) == 0  # in place of 1
        assert cached.check(some(50, 3), greedy_with_logprobs(1), AR) == 48


def test_a_short_prompt_does_not_wait_for_a_long_one(plain: Engine) -> None:
    together = Together(plain, most=32, most_beside=32)
    long = together.add(some(400, 1), greedy_with_logprobs(2), AR)
    together.run()
    short = together.add(some(20, 2), greedy_with_logprobs(2), AR)
    for _ in range(2):
        together.run()
    assert len(short.ready()) >= 1 and not long.ready()
    others: list[Generation] = []  # nor does a flood of short ones hold up the long one for ever
    while not long.ready():
        if plain._free:
            others.append(together.add(some(30, 10 + len(others)), greedy_with_logprobs(1), AR))
        together.run()
        assert len(others) < 40
    together.close()
    assert len(plain._free) == plain.slots


def test_prompts_take_less_of_a_pass_that_others_share(plain: Engine) -> None:
    with Cached(plain, most=128, most_beside=16) as cached:
        passes = counting(cached)
        talking = cached.together.add(some(5, 1), greedy_with_logprobs(40), AR)
        next(talking)
        long = cached.together.add(some(100, 2), greedy_with_logprobs(1), AR)
        while cached.together.run():
            pass
        assert max(sum(each.values()) for each in passes[1:]) == 17
        assert len(talking.ready()) == 39 and len(long.ready()) == 1


@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from([1, 8]), st.sampled_from([1, 8]), st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_what_is_taken_over_leaves_blocks_whole_and_no_row_alone(
    length: int, blocks: int, rule: int, head_rule: int, common: int
) -> None:
    head = min(length // 8 * 8, blocks * 8)
    request = Request(np.arange(length, dtype=np.int32), "last", 0, rule, head=head, head_block=head_rule)
    count = usable(request, common)
    border = head or length
    assert 0 <= count <= min(common, length - 1) and (count == 0 or count >= LEAST)
    assert (
        count <= border
        and count % rule_of(request)[0] == 0
        and (border - count != 1 or border == 1 or rule_of(request)[0] > 1)
    )
    assert shared(request, request) == usable(request, border)
    assert PIECE_TOKENS > LEAST
