"""One checkpoint through torch, the engine and a server over a real socket: the same figures; and what servers lack.

The server computes on the engine, with float32 logarithms where NumPy has float64. Other servers are stand-ins that
speak the protocol with a toy model: one like vLLM (no answer of 0 tokens, no /tokenizer_info), one without echo.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizer_toys
import toy_checkpoints
from running_server import MODEL, RunningServer, chat_toy
from scoring_stand_in import ScoringStandIn
from transformers import PreTrainedTokenizerFast

from wrinklefree.cli.main import main
from wrinklefree.errors import InputError
from wrinklefree.eval.loss import scored_loss
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.perplexity import perplexity
from wrinklefree.eval.scorer import Request, Scorer, Settings, document_ids
from wrinklefree.eval.server_scorer import ServerScorer, TopScores
from wrinklefree.eval.text import evaluation_documents, evaluation_text
from wrinklefree.eval.top_agreement import bound
from wrinklefree.export.export import export
from wrinklefree.models.io import load_source

pytest.importorskip("wrinklefree._native", reason="the engine is not built")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths: a checkpoint, its packed export, a plain model of its tokenizer, a text."""
    root = tmp_path_factory.mktemp("models")
    checkpoint = toy_checkpoints.write(root / "checkpoint")
    export(checkpoint, root / "packed", verify=False)
    toy_checkpoints.model(seed=8).save_pretrained(root / "plain")
    PreTrainedTokenizerFast.from_pretrained(tokenizer_toys.write(root / "tokenizer")).save_pretrained(root / "plain")
    (root / "text.txt").write_text("Some text to be scored, over HTTP. Straße.\n" * 12, encoding="utf-8")
    return {name: str(root / name) for name in ("checkpoint", "packed", "plain", "text.txt")}


@pytest.fixture(scope="module")
def url(models: dict[str, str]) -> Iterator[str]:
    with RunningServer(Path(models["packed"]), context=256) as server:
        yield server.url


def some_requests() -> list[Request]:
    draws = np.random.default_rng(3)
    context = draws.integers(0, 256, 40)
    many = [Request(np.concatenate([context, draws.integers(0, 256, n)]), 40) for n in (1, 5, 9)]
    return [*many, Request(draws.integers(0, 256, 256), 1), Request(draws.integers(0, 256, 2), 1)] * 9


def test_the_same_checkpoint_has_one_perplexity_everywhere(models: dict[str, str], url: str) -> None:
    ways = [models["checkpoint"], models["packed"], url, f"{url}/v1/#{MODEL}"]
    found = [perplexity(way, models["text.txt"], window=64, stride=40, threads=1) for way in ways]
    assert [each.runs_on for each in found] == ["torch", "engine", "server", "server"]
    assert len({each.loss.tokens for each in found}) == 1
    assert [each.loss.perplexity for each in found] == pytest.approx([found[0].loss.perplexity] * 4, rel=0.005)
    # The engine against itself behind a socket: float32 logarithms near 6 nats.
    assert found[2].loss.loss == pytest.approx(found[1].loss.loss, abs=2e-6)
    assert found[2].loss.bits_per_byte == pytest.approx(found[1].loss.bits_per_byte)


def test_scores_choices_and_continuations_are_the_engines(models: dict[str, str], url: str) -> None:
    prompts = [[5, 6, 7], [70] * 30, [1, 2]] * 14
    with open_scorer(models["packed"], threads=1) as engine, open_scorer(url) as server:
        for one, other in zip(*(each.score(some_requests()) for each in (engine, server)), strict=True):
            np.testing.assert_allclose(one.losses, other.losses, atol=4e-6)
            assert one.greedy.tolist() == other.greedy.tolist()
        for settings in (Settings(9), Settings(9, (), 0.9, 0.8, 5)):
            assert list(engine.generate(prompts, settings)) == list(server.generate(prompts, settings))
        stop = next(engine.generate(prompts[:1], Settings(9)))[4]
        assert next(server.generate(prompts[:1], Settings(9, (stop,)))) == next(
            engine.generate(prompts[:1], Settings(9, (stop,)))
        )


def same_reading(one: Scorer, other: Scorer) -> None:
    for text in ("", "Straße ", "a\n\nb", "<s>x</s>"):
        assert one.encode(text) == other.encode(text) and document_ids(one, text) == document_ids(other, text)
    assert one.first_token() == other.first_token() and one.adds_bos == other.adds_bos


@pytest.mark.parametrize("bos", [False, True])
def test_texts_and_conversations_are_read_alike(tmp_path: Path, bos: bool) -> None:
    packed = chat_toy(tmp_path / "toy", post_processor_bos=bos)
    messages = [{"role": "user", "content": "Why?"}]
    with (
        RunningServer(packed, slots=1) as server,
        open_scorer(str(packed), threads=1) as engine,
        open_scorer(server.url) as other,
    ):
        same_reading(engine, other)
        assert other.adds_bos == bos and other.chat(messages) == engine.chat(messages)


def test_agreement_over_http_is_exact_but_for_kl(models: dict[str, str], url: str) -> None:
    words = {"text": models["text.txt"], "window": 64, "limit_tokens": 130, "threads": 1}
    exact = perplexity(models["packed"], **words, teacher=models["plain"]).agreement  # type: ignore[arg-type]
    pairs = [(url, models["plain"]), (url, url), (models["packed"], url)]
    found = [perplexity(model, **words, teacher=teacher).agreement for model, teacher in pairs]  # type: ignore[arg-type]
    assert exact is not None and exact.kl_top is None
    mixed, itself, local = found
    assert mixed is not None and itself is not None and local is not None
    for name in ("top1", "flips", "teacher_accuracy", "student_accuracy", "tokens"):
        assert getattr(mixed, name) == getattr(exact, name)
    assert 0 < mixed.kl < exact.kl and mixed.kl_top == 20
    for same in (itself, local):
        assert same.top1 == 1.0 and same.flips == 0.0 and same.kl == pytest.approx(0.0, abs=1e-6)


def test_the_bound_is_the_divergence_of_what_is_put_together() -> None:
    draws = np.random.default_rng(0)
    theirs, ours = (draws.normal(0, 2, (50, 30)).astype(np.float32) for _ in range(2))
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in (theirs, ours))
    exact = (p * np.log(p / q)).sum(1)

    def top(of: Any, count: int) -> TopScores:
        ids = np.argsort(-of, axis=1, kind="stable")[:, :count]
        return TopScores(ids, np.log(np.take_along_axis(of, ids, 1)))

    for count in (1, 5, 29, 30):
        for bounds in (bound(top(p, count), ours), bound(theirs, top(q, count)), bound(top(p, count), top(q, count))):
            assert (bounds <= exact + 1e-6).all() and (bounds >= 0).all()
    np.testing.assert_allclose(bound(top(p, 30), ours), exact, atol=1e-5)  # the rest's least is 1e-6 here
    assert bound(theirs, top(q, 5)).mean() > bound(theirs, top(q, 1)).mean() > 0
    ids = np.array([[3]])  # by hand: 0.5 of the teacher's and 0.25 of the student's, and the rest
    halves = bound(TopScores(ids, np.log([[0.5]])), TopScores(ids, np.log([[0.25]])))
    assert halves[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75))


def test_a_server_like_vllm(models: dict[str, str]) -> None:
    """It must be asked for a token, says nothing of its tokenizer but /tokenize, and may list more than was asked."""
    with (
        ScoringStandIn(load_source(models["plain"])[0], least_tokens=1) as stand_in,
        open_scorer(stand_in.url) as server,
        open_scorer(models["plain"]) as torch_scorer,
    ):
        assert server.context == 254
        text = evaluation_text(evaluation_documents(models["text.txt"]), server.encode, 60)
        expected = scored_loss(torch_scorer, text).loss
        assert scored_loss(server, text).loss == pytest.approx(expected, abs=1e-5)
        with pytest.raises(InputError, match=r"does not say which token begins a text.*tokenizer-info"):
            server.first_token()
        with pytest.raises(InputError, match="no chat template"):
            server.chat([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"echo": False}, "no log-probabilities of a prompt .*echo is not supported.*use wf serve or vLLM"),
        ({"silent": True}, "no log-probabilities of a prompt"),  # llama-server's old answer: of what was generated
        ({"style": "text"}, "names tokens by text"),
    ],
)
def test_servers_without_what_is_needed_still_continue(
    models: dict[str, str], options: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScoringStandIn(load_source(models["plain"])[0], **options) as stand_in:
        with open_scorer(stand_in.url) as server:
            with pytest.raises(InputError, match=message):
                server.score([])
            assert list(server.generate([[1]], Settings(2))) == ["continued"]
        assert main(["eval", stand_in.url, "--perplexity", models["text.txt"]]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_wrong_addresses(models: dict[str, str], url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(InputError, match=f"unknown model of .* 'toi'; did you mean '{MODEL}'"),
        open_scorer(f"{url}#toi"),
    ):
        pass
    with pytest.raises(InputError, match="http://h: leave the name") as error, open_scorer("http://u:secret@h/v1"):
        pass
    assert "secret" not in str(error.value)
    with pytest.raises(InputError, match="needed is http"), open_scorer("http://"):
        pass
    with pytest.raises(InputError, match="context of 256 tokens"):
        perplexity(url, models["text.txt"], window=300)
    scorer = ServerScorer(url)
    with pytest.raises(InputError, match="found 258 tokens"):
        scorer.score([Request(np.zeros(258, np.int64), 1)])


def test_a_server_that_is_not_there_fails_with_what_was_seen(
    models: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wrinklefree.teachers.completions._LONGEST_WAIT_SECONDS", 0.0)
    assert main(["eval", "http://127.0.0.1:9", "--perplexity", models["text.txt"]]) == 1
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


def test_a_key_is_asked_for(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with RunningServer(Path(models["packed"]), slots=1, context=64, api_keys=("secret",)) as server:
        with pytest.raises(InputError, match="answered 401; set its key in OPENAI_API_KEY"), open_scorer(server.url):
            pass
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        with open_scorer(server.url) as scorer:
            assert next(scorer.score([Request(np.arange(4), 1)])).losses.shape == (3,)
