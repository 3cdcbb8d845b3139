"""`Scorer`s of torch and of the engine: each gives the losses of its own logits, whatever else is asked with them.

Compared with `token_losses` of the model's logits, one request alone. The engine must give the same bits whether a
prefix was kept, in which slot a request ran, and beside which others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import toy_checkpoints
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.engine import Engine, SamplingParams
from wrinklefree.errors import InputError
from wrinklefree.eval.engine_scorer import EngineScorer, kept
from wrinklefree.eval.loss import token_losses
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.scorer import Request, Scorer, Scores, Settings, document_ids
from wrinklefree.export.export import export

pytest.importorskip("wrinklefree._native", reason="the engine is not built")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths: a checkpoint and its packed export."""
    root = tmp_path_factory.mktemp("models")
    checkpoint = toy_checkpoints.write(root / "checkpoint")
    export(checkpoint, root / "packed", verify=False)
    return {name: str(root / name) for name in ("checkpoint", "packed")}


@pytest.fixture(scope="module", params=["checkpoint", "packed"])
def scorer(request: pytest.FixtureRequest, models: dict[str, str]) -> Iterator[Scorer]:
    with open_scorer(models[request.param], threads=1) as opened:
        yield opened


def some_requests(seed: int = 0) -> list[Request]:
    """Choices behind one context, single tokens behind another, whole texts, and the shortest there is."""
    draws = np.random.default_rng(seed)

    def tokens(number: int) -> list[int]:
        return [int(token) for token in draws.integers(0, 256, number)]

    context, other, shots = tokens(40), tokens(23), tokens(30)
    found = [Request(np.array(context + tokens(n)), 40) for n in (5, 1, 9, 1)]
    found += [Request(np.array([*other, n]), 23) for n in (7, 8, 9)]
    found += [Request(np.array(shots + tokens(n)), 30 + n - 2) for n in (12, 30, 7)]
    return [*found, Request(np.array(tokens(200)), 1), Request(np.array(tokens(2)), 1), Request(np.array(context), 39)]


def alone(scorer: Scorer, request: Request) -> Scores:
    """The specification: all logits of one request from nothing, and NumPy."""
    assert scorer.logits is not None
    out = scorer.logits(request.tokens)
    rows = out if isinstance(out, np.ndarray) else np.concatenate([piece.copy() for piece in out])
    rows, targets = rows[request.first - 1 : -1], request.tokens[request.first :]
    return Scores(token_losses(rows, targets), rows.argmax(axis=1) == targets)


def test_scores_are_those_of_the_logits(scorer: Scorer) -> None:
    requests = some_requests()
    for request, scores in zip(requests, scorer.score(requests), strict=True):
        expected = alone(scorer, request)
        # float32 matrix products of rows of different shapes; about ten units in the last place of logits near 10.
        np.testing.assert_allclose(scores.losses, expected.losses, atol=2e-5)
        assert scores.greedy.tolist() == expected.greedy.tolist()
        assert scores.losses.dtype == np.float64 and len(scores.losses) == len(request.tokens) - request.first


def test_torch_gives_scores_in_order_whatever_goes_into_a_batch(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = some_requests()
    with open_scorer(models["checkpoint"]) as one:
        whole = [scores.losses for scores in one.score(requests)]
        for name, few in (("_AHEAD_TOKENS", 60), ("_TOKENS", 90), ("_LOGITS", 258 * 50)):
            monkeypatch.setattr(f"wrinklefree.eval.torch_scorer.{name}", few)
            for scores, expected in zip(one.score(requests), whole, strict=True):
                np.testing.assert_allclose(scores.losses, expected, atol=2e-5)


def test_a_greedy_continuation_is_greedy(scorer: Scorer) -> None:
    assert scorer.logits is not None
    tokens = [5, 6, 7]
    for _ in range(6):
        rows = scorer.logits(np.array(tokens))
        tokens.append(int((rows if isinstance(rows, np.ndarray) else list(rows)[-1])[-1].argmax()))
    wrong = [*tokens[:-1], (tokens[-1] + 1) % 256]
    found = list(scorer.score([Request(np.array(each), 3) for each in (tokens, wrong)]))
    assert found[0].greedy.all() and found[1].greedy.tolist() == [True] * 5 + [False]


@given(order=st.permutations(range(13)), slots=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_the_engines_scores_do_not_depend_on_company(models: dict[str, str], order: list[int], slots: int) -> None:
    requests = some_requests()
    single = [next(EngineScorer("x", _engine(models, 1)).score([request])) for request in requests]
    mixed = EngineScorer("x", _engine(models, slots)).score([requests[i] for i in order])
    for i, scores in zip(order, mixed, strict=True):
        assert scores.losses.tolist() == single[i].losses.tolist()  # every bit


_ENGINES: dict[int, Engine] = {}


def _engine(models: dict[str, str], slots: int) -> Engine:
    if slots not in _ENGINES:
        _ENGINES[slots] = Engine.load(models["packed"], threads=1, slots=slots)
    return _ENGINES[slots]


@given(held=st.lists(st.integers(0, 1), max_size=6), inputs=st.lists(st.integers(0, 1), min_size=1, max_size=6),
       data=st.data())  # fmt: skip
def test_what_is_kept_is_common_and_leaves_two_rows(held: list[int], inputs: list[int], data: st.DataObject) -> None:
    first = data.draw(st.integers(1, len(inputs)))
    count = kept(np.array(held, np.int64), np.array(inputs, np.int64), first)
    assert held[:count] == inputs[:count] and count <= first - 1
    assert len(inputs) - count >= min(2, len(inputs))
    most = min(first - 1, max(0, len(inputs) - 2), len(held))
    assert count == most or held[count] != inputs[count] or len(inputs) - count == 2


def test_torch_and_the_engine_score_alike(models: dict[str, str]) -> None:
    requests = some_requests()
    with open_scorer(models["checkpoint"]) as one, open_scorer(models["packed"], threads=1) as other:
        ours, theirs = (np.concatenate([s.losses for s in each.score(requests)]) for each in (one, other))
    # What the engine differs by: int8 embeddings (half a part in 127) and a float16 cache.
    assert theirs.mean() == pytest.approx(ours.mean(), rel=0.005)


@pytest.mark.parametrize(
    ("tokens", "first", "message"),
    [
        ([1, 2], 0, "those from 0 on"),
        ([1, 2], 2, "those from 2 on"),
        ([1] * 258, 1, "found 258 tokens, .* context of 256"),
        ([1, 99999], 1, "found token 99999"),
        ([-1, 5], 1, "found token -1"),
    ],
)
def test_requests_that_cannot_be_scored(scorer: Scorer, tokens: Sequence[int], first: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        next(scorer.score([Request(np.array(tokens), first)]))


def test_a_request_of_one_token_more_than_the_context_fits(scorer: Scorer) -> None:
    (scores,) = scorer.score([Request(np.arange(257) % 250, 256)])
    assert len(scores.losses) == 1 and np.isfinite(scores.losses[0])


def test_torch_continues_as_the_engine_does(models: dict[str, str]) -> None:
    prompts = [[5, 6, 7], [5, 6, 7, 8, 9], [70]]
    with open_scorer(models["packed"], threads=1) as other:
        assert isinstance(other, EngineScorer)
        found = list(other.generate(prompts, Settings(max_tokens=12)))
        params = SamplingParams(max_tokens=12, temperature=0.0, top_p=1.0, seed=0)
        assert found == [other.engine.generate(prompt, params).run().text for prompt in prompts]
        stop = found[0][4:6]
        (cut,) = other.generate(prompts[:1], Settings(max_tokens=12, stop=(stop,)))
        assert found[0].startswith(cut) and stop not in cut
    with open_scorer(models["checkpoint"]) as one:
        # The same model up to int8 embeddings: the first tokens agree, later ones may not.
        texts = list(one.generate(prompts, Settings(max_tokens=12)))
        assert [text[:1] for text in texts] == [text[:1] for text in found]
        stop = texts[0][4:6]
        (cut,) = one.generate(prompts[:1], Settings(max_tokens=12, stop=(stop,)))
        assert texts[0].startswith(cut) and stop not in cut
        drawn = [list(one.generate(prompts, Settings(12, (), 1.5, 0.9, seed))) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        with pytest.raises(InputError, match="context of 256"):
            next(one.generate([[1] * 256], Settings()))


def test_both_read_texts_alike(models: dict[str, str]) -> None:
    with open_scorer(models["checkpoint"]) as one, open_scorer(models["packed"], threads=1) as other:
        for text in ("", "Straße ", "a\n\nb"):
            assert one.encode(text) == other.encode(text) and document_ids(one, text) == document_ids(other, text)
        assert one.first_token() == other.first_token() and one.adds_bos == other.adds_bos
