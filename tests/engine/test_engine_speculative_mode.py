"""Self-speculative answers of the engine against token-by-token ones of the same model: equal to the last bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from diffusion_models import KINDS, make_diffusion_toy
from distributions import chi_square_chance, filtered
from toy_models import TOYS

from wrinklefree.engine import DecodingSettings, Engine, SamplingParams
from wrinklefree.engine.generation import Generation
from wrinklefree.errors import InputError

AR = DecodingSettings(mode="ar")


def speculative(window: int | None = None) -> DecodingSettings:
    return DecodingSettings(mode="speculative", window=window)


def greedy(count: int, **changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": count, "temperature": 0.0, "ignore_eos": True, "seed": 1, **changes})


def prompt_of(length: int, vocabulary: int = 250) -> list[int]:
    found: list[int] = np.random.default_rng(length).integers(1, vocabulary, length).tolist()
    return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(make_diffusion_toy(tmp_path_factory.mktemp("toy"), "causal"), threads=1, context=400, slots=3)


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8, None])
def test_greedy_answers_are_those_of_decoding_token_by_token(engine: Engine, window: int | None) -> None:
    # 6 windows x 6 prompts x 80 tokens: 2,880
    for length in (1, 2, 7, 33, 100, 257):
        wanted = engine.generate(prompt_of(length), greedy(80, logprobs=2), AR).run()
        found = engine.generate(prompt_of(length), greedy(80, logprobs=2), speculative(window)).run()
        assert found.mode == "speculative"
        assert found.tokens == wanted.tokens and len(found.tokens) == 80
        assert found.accepted is not None and found.forwards == 80 - found.accepted
        steps = [engine.generate(prompt_of(length), greedy(30, logprobs=2), mode) for mode in (AR, speculative(window))]
        assert [step.best for step in steps[0]] == [step.best for step in steps[1]]


# every kind of head, norm and projection that has arithmetic of its own
@pytest.mark.parametrize("name", ["llama_row_odd_sizes", "untied_f16_head", "q6_head", "qwen3", "bitnet", "low_rank"])
def test_greedy_answers_of_other_architectures(name: str, tmp_path: Any) -> None:
    changes, granularity, group, options = TOYS[name]
    toy = make_diffusion_toy(tmp_path, "causal", packing=(granularity, group, options), **changes)
    for kv_type, threads in (("float16", 2), ("int8", 1)):
        loaded = Engine.load(toy, threads=threads, kv_type=kv_type)
        for length in (3, 70):
            wanted = loaded.generate(prompt_of(length, 240), greedy(60), AR).run()
            found = loaded.generate(prompt_of(length, 240), greedy(60), speculative(4)).run()
            assert found.tokens == wanted.tokens


def test_drafts_are_accepted_where_the_model_has_few_words(tmp_path: Any) -> None:
    """Of eight tokens, random models guess many."""
    toy = make_diffusion_toy(tmp_path, "causal", seed=1, vocab_size=8, pad_token_id=None)
    loaded, accepted = Engine.load(toy, threads=1), 0
    for window in (1, 3, 8, None):
        for length in (1, 5, 40):
            wanted = loaded.generate(prompt_of(length, 7), greedy(100), AR).run()
            found = loaded.generate(prompt_of(length, 7), greedy(100), speculative(window)).run()
            assert found.tokens == wanted.tokens
            accepted += found.accepted or 0
    assert accepted > 100


def test_the_end_of_the_context_and_of_the_answer(engine: Engine) -> None:
    for length in (380, 391, 396, 399, 400):
        wanted = engine.generate(prompt_of(length), greedy(1000), AR).run()
        for window in (1, 4, 8):
            found = engine.generate(prompt_of(length), greedy(1000), speculative(window)).run()
            assert (found.tokens, found.finish_reason) == (wanted.tokens, "length")
            assert len(found.tokens) == 401 - length
    for count in (1, 2, 3, 4):
        found = engine.generate(prompt_of(9), greedy(count), speculative(8)).run()
        assert found.tokens == engine.generate(prompt_of(9), greedy(count), AR).run().tokens
        assert (found.proposed == 0) == (count < 4)


def test_stop_tokens_and_stop_strings(engine: Engine) -> None:
    text = engine.generate(prompt_of(5), greedy(60), AR).run()
    for at in (0, 1, 5, 20, 40):
        ends = {"stop_tokens": (text.tokens[at],)}
        strings = {"stop": (engine.tokenizer.decode(text.tokens[at : at + 2]) or "zz",)}
        for stop in (ends, strings):
            wanted = engine.generate(prompt_of(5), greedy(60, **stop), AR).run()
            found = engine.generate(prompt_of(5), greedy(60, **stop), speculative(5)).run()
            assert (found.text, found.tokens, found.finish_reason) == (wanted.text, wanted.tokens, wanted.finish_reason)


def test_answers_in_joint_passes_are_the_same(engine: Engine) -> None:
    prompts = [prompt_of(length) for length in (3, 60, 17)]
    params = [greedy(40), greedy(50, temperature=0.9, top_p=0.95), greedy(30, repetition_penalty=1.2)]
    modes = [speculative(3), speculative(2), speculative(6)]

    def figures(answer: Generation) -> Any:
        return answer.tokens, answer.forwards, answer.proposed, answer.accepted

    alone = [figures(engine.generate(*each).run()) for each in zip(prompts, params, modes, strict=True)]
    together = engine.generate_together(prompts, params, modes)
    assert [figures(answer.run()) for answer in together] == alone


def test_greedy_answers_with_a_penalty(engine: Engine) -> None:
    for penalty in (0.8, 1.3):
        params = greedy(80, repetition_penalty=penalty)
        wanted = engine.generate(prompt_of(12), params, AR).run()
        assert engine.generate(prompt_of(12), params, speculative(4)).run().tokens == wanted.tokens


@pytest.mark.parametrize("filters", [{"top_p": 1.0}, {"top_k": 5, "top_p": 0.9, "min_p": 0.02}])
def test_sampled_answers_have_the_exact_distribution(filters: dict[str, Any], tmp_path: Any) -> None:
    """Texts of three tokens out of seven, behind the first one, against the products of the model's probabilities."""
    toy = make_diffusion_toy(tmp_path, "causal", seed=1, vocab_size=8, pad_token_id=None)
    loaded, prompt, draws, accepted = Engine.load(toy, threads=1, context=32), [1, 2, 3, 4], 1200, 0
    counts, wanted = np.zeros((8, 8, 8), np.int64), np.ones((8, 8, 8))
    for text in itertools.product(range(7), repeat=2):
        rows = loaded.logits([*prompt, *text])[-3:]
        chances = [filtered(row, temperature=1.5, **filters) for row in rows]
        wanted[text] = chances[0][text[0]] * chances[1][text[1]] * chances[2]
    wanted[7], wanted[:, 7], wanted[..., 7] = 0, 0, 0
    for seed in range(draws):
        params = SamplingParams(max_tokens=6, temperature=1.5, seed=seed, ignore_eos=True, **filters)
        answer = loaded.generate(prompt, params, speculative(2)).run()
        counts[tuple(answer.tokens[:3])] += 1
        accepted += answer.accepted or 0
    assert accepted > 200  # or there would be nothing to test
    assert chi_square_chance(counts.ravel(), wanted.ravel()) > 1e-3


def test_a_seed_gives_the_same_text_with_the_same_window(engine: Engine) -> None:
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=5, ignore_eos=True)
    texts = [engine.generate(prompt_of(4), params, speculative(3)).run().tokens for _ in range(2)]
    assert texts[0] == texts[1]


def test_t16_models_that_cannot_verify_themselves_are_refused(tmp_path: Any, engine: Engine) -> None:
    for kind in KINDS.keys() - {"causal"}:
        other = Engine.load(make_diffusion_toy(tmp_path / kind, kind), threads=1)
        with pytest.raises(InputError, match=r"mode speculative: needs variant causal .* use mode block or ar"):
            other.generate([1], greedy(5), speculative())
        if kind.startswith("causal"):
            assert other.generate([1], greedy(5)).mode == "ar"
    assert engine.generate([1], greedy(5)).mode in ("ar", "speculative")  # as rows cost here
    with pytest.raises(InputError, match="found the MASK token 255"):
        engine.generate([1, 255, 2], greedy(5), speculative())


def test_row_costs(engine: Engine) -> None:
    costs = engine.row_costs()
    assert costs.shape == (17,) and costs[0] == 1 and (np.diff(costs) >= 0).all()
    assert engine.row_costs() is costs


def test_only_greedy_windows_follow_the_company(tmp_path: Any) -> None:
    """A crowd closes them, and no word changes; what is drawn has the windows, so the words, that it has alone."""
    toy = make_diffusion_toy(tmp_path, "causal", seed=1, vocab_size=8, pad_token_id=None)
    engine = Engine.load(toy, threads=1, slots=9)
    engine._row_costs = 1 + 0.1 * np.arange(17)  # so that the plan does not hang on this machine
    prompts = [prompt_of(3 + i, 7) for i in range(9)]
    drawn = SamplingParams(max_tokens=60, temperature=0.7, top_p=1.0, seed=5)
    for params in (greedy(60), drawn):
        alone = [engine.generate(prompt, params, speculative(None)).run() for prompt in prompts]
        crowd = [each.run() for each in engine.generate_together(prompts, params, speculative(None))]
        assert [each.tokens for each in crowd] == [each.tokens for each in alone]
        proposed = [sum(each.proposed or 0 for each in group) for group in (alone, crowd)]
        assert proposed[1] < proposed[0] / 2 if params.temperature == 0 else proposed[1] == proposed[0]
