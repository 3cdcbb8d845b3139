"""Scores of a prompt's tokens against log-softmax of `Engine.logits`, alone and beside others; the text behind it
against the same prompt that is not scored.

Rows of a pass are the same to the last bit in any company, so scores are compared exactly between ways of computing;
against float64 the tolerance is float32's rounding of a logit minus its peak and log total, about 20: 4e-6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusion_models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import make_toy

from wrinklefree import _native
from wrinklefree.engine import DecodingSettings, Engine, Generation, SamplingParams, Together, greedy
from wrinklefree.engine.decoding import causal_piece_end
from wrinklefree.engine.prompt_scores import PIECE_ROWS, PromptScores
from wrinklefree.errors import FormatError, InputError


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    toy = make_toy(tmp_path_factory.mktemp("toys") / "toy", "llama_row_odd_sizes")
    return Engine.load(toy, threads=1, slots=3)


def scored(count: int, tokens: int = 6, **changes: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.0, top_p=1.0, prompt_logprobs=count, **changes)


def prompt_of(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).integers(0, 250, count).astype(np.int32)


def scores_of(generation: Generation) -> PromptScores:
    found = generation.prompt_scores
    assert found is not None
    return found


def wanted_scores(logits: Any, tokens: Any, count: int) -> tuple[Any, Any, Any]:
    """Logprobs of tokens 1.., the best tokens there and theirs, in float64; ties by the lower id."""
    wide = logits[:-1].astype(np.float64)
    peak = wide.max(axis=1, keepdims=True)
    logprobs = wide - peak - np.log(np.exp(wide - peak).sum(axis=1, keepdims=True))
    best = np.argsort(-logits[:-1], axis=1, kind="stable")[:, :count]
    rows = np.arange(len(wide))[:, None]
    return logprobs[rows[:, 0], tokens[1:]], best, logprobs[rows, best]


@pytest.mark.parametrize(
    "count", [1, 2, 40, PIECE_ROWS, PIECE_ROWS + 1, PIECE_ROWS + 2, 3 * PIECE_ROWS + 1, 5 * PIECE_ROWS + 1]
)
def test_scores_are_those_of_the_logits(engine: Engine, count: int) -> None:
    tokens = prompt_of(count, count)
    generation = engine.generate(tokens, scored(5, logprobs=1))
    assert generation.prompt_scores is None
    steps = list(generation)
    plain = SamplingParams(max_tokens=6, temperature=0.0, top_p=1.0, logprobs=1)
    assert steps == list(engine.generate(tokens, plain))  # their logprobs too, to the last bit
    assert steps[-1].forwards == 6
    found = scores_of(generation)
    assert (found.logprobs.shape, found.best.shape, found.best_logprobs.shape) == ((count,), (count, 5), (count, 5))
    assert np.isnan(found.logprobs[0])
    assert found.best[0].tolist() == [-1] * 5
    logprobs, best, best_logprobs = wanted_scores(engine.logits(tokens), tokens, 5)
    np.testing.assert_allclose(found.logprobs[1:], logprobs, atol=4e-6, rtol=0)
    np.testing.assert_array_equal(found.best[1:], best)
    np.testing.assert_allclose(found.best_logprobs[1:], best_logprobs, atol=4e-6, rtol=0)


def test_scores_beside_others_are_those_alone(engine: Engine) -> None:
    prompts = [prompt_of(seed, count) for seed, count in ((1, 300), (2, 2), (3, 130), (4, 65), (5, 1))]
    plain = prompt_of(9, 280)
    alone = [scores_of(engine.generate(prompt, scored(3)).run()) for prompt in prompts]
    text = engine.generate(plain, greedy(20)).run().tokens
    together = Together(engine)
    beside = [together.add(plain, greedy(20)), *(together.add(prompt, scored(3)) for prompt in prompts)]
    while together.run():
        pass
    assert beside[0].run().tokens == text
    for generation, wanted in zip(beside[1:], alone, strict=True):
        found = scores_of(generation)
        for name in ("logprobs", "best", "best_logprobs"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_the_last_token_of_a_longer_prompt_has_the_logprob_it_had_as_an_answer(engine: Engine) -> None:
    tokens = prompt_of(7, 70)
    (step,) = engine.generate(tokens, SamplingParams(max_tokens=1, temperature=0.0, logprobs=4))
    found = scores_of(engine.generate([*tokens, step.token], scored(4, 1)).run())
    assert found.logprobs[-1] == np.float32(step.logprob or 0)
    assert list(zip(found.best[-1].tolist(), found.best_logprobs[-1], strict=True)) == [
        (token, np.float32(logprob)) for token, logprob in step.best
    ]


def test_a_whole_context_is_scored(engine: Engine) -> None:
    tokens = prompt_of(8, engine.context)
    generation = engine.generate(tokens, scored(0)).run()
    assert len(generation.tokens) == 1
    assert scores_of(generation).best.shape == (engine.context, 0)
    assert np.isfinite(scores_of(generation).logprobs[1:]).all()


def test_a_diffusion_model_is_scored_causally(tmp_path: Path) -> None:
    toy = diffusion_models.make_diffusion_toy(tmp_path / "toy", "causal")
    engine = Engine.load(toy, threads=1, slots=2)
    tokens = np.arange(30, 70, dtype=np.int32)
    generation = engine.generate(tokens, scored(2)).run()
    assert generation.mode == "ar"
    wanted = wanted_scores(engine.logits(tokens), tokens, 2)[0]
    np.testing.assert_allclose(scores_of(generation).logprobs[1:], wanted, atol=4e-6, rtol=0)
    for mode in ("block", "speculative"):
        with pytest.raises(InputError, match=f"mode {mode}: prompt_logprobs"):
            engine.generate(tokens, scored(2), DecodingSettings(mode=mode))  # type: ignore[arg-type]


def test_nothing_is_scored_unless_asked(engine: Engine) -> None:
    assert engine.generate([1, 2, 3], greedy(2)).run().prompt_scores is None
    for wrong in (-1, 101, True):
        with pytest.raises(InputError, match="prompt_logprobs: found"):
            scored(wrong)


@given(st.integers(1, 70), st.integers(0, 3), st.integers(0, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_rows_of_any_width(engine: Engine, width: int, rows: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(-6, 6, (rows + 1, width)).astype(np.float32)  # many ties
    logits[rng.random(logits.shape) < 0.1] = -np.inf  # banned
    logits[:, rng.integers(width)] = 1.0
    tokens = rng.integers(0, width, rows + 1).astype(np.int32)
    count = min(count, width)
    found = np.empty(rows, np.float32), np.empty((rows, count), np.int32), np.empty((rows, count), np.float32)
    _native.score_rows(engine._model, logits[:-1], tokens[1:], *found)
    for mine, wanted in zip(found, wanted_scores(logits, tokens, count), strict=True):
        np.testing.assert_allclose(mine, wanted, atol=4e-6, rtol=0)


def test_rows_that_cannot_be_scored(engine: Engine) -> None:
    def score(logits: Any, tokens: list[int], count: int = 1) -> Any:
        rows = len(logits)
        out = np.empty(rows, np.float32), np.empty((rows, count), np.int32), np.empty((rows, count), np.float32)
        _native.score_rows(engine._model, np.asarray(logits, np.float32), np.array(tokens, np.int32), *out)
        return out[0]

    assert np.isnan(score([[0.0, 1.0]], [-1])).all()
    for tokens in ([2], [-2]):
        with pytest.raises(InputError, match=f"found {tokens[0]} at index 0, allowed are 0 to 1"):
            score([[0.0, 1.0]], tokens)
    with pytest.raises(InputError, match="score_rows: of logits"):
        score([[0.0, 1.0]], [1], 3)
    with pytest.raises(InputError, match="score_rows: of logits"):
        score([[0.0, 1.0]], [1, 1])
    with pytest.raises(FormatError, match="NaN"):
        score([[0.0, 1.0], [0.0, np.nan]], [1, 1])
    with pytest.raises(InputError, match="found 2 at index 1"):
        score([[0.0, 1.0], [0.0, 1.0]], [1, 2])


def test_no_piece_is_a_row_alone() -> None:
    # Its attention may add up in another order than that of rows in company.
    for total in range(2, 4 * PIECE_ROWS):
        begin = 0
        while begin < total:
            end = causal_piece_end(total, begin, PIECE_ROWS)
            assert 2 <= end - begin <= PIECE_ROWS
            begin = end
        assert begin == total


def test_threads_change_nothing(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", "llama_row_odd_sizes")
    tokens = prompt_of(1, 100)
    one, two = (scores_of(Engine.load(toy, threads=threads).generate(tokens, scored(4, 1)).run()) for threads in (1, 2))
    np.testing.assert_array_equal(one.logprobs, two.logprobs)
    np.testing.assert_array_equal(one.best_logprobs, two.best_logprobs)
