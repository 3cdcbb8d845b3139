"""Tasks of lm-evaluation-harness on our scorers, compared with its own model for Hugging Face on the same toy.

The one file that imports the harness (seconds). The toy's tokenizer has merges, so that texts do melt at their seams.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizer_toys
import toy_checkpoints
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from wrinklefree.errors import InputError
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.scorer import Settings
from wrinklefree.eval.tasks.catalog import load_tasks
from wrinklefree.eval.tasks.figures import figure, mean
from wrinklefree.eval.tasks.run import TaskOptions, TaskReport, run_tasks
from wrinklefree.export.export import export

pytest.importorskip("lm_eval", reason="the harness is not installed: its tasks were not run")
pytest.importorskip("wrinklefree._native", reason="the engine is not built")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from wrinklefree.eval.tasks.bridge import ScorerModel, generation_settings

CONTEXT = 96
_TEXT = "the theatre there, then another: hello hollow yellow fellow. Straße straight stream. " * 4


@pytest.fixture(scope="module", params=[False, True], ids=["without_bos", "with_bos"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model with a tokenizer that has merges; its texts begin with BOS or do not."""
    out = tmp_path_factory.mktemp("plain")
    tokenizer_toys.write(out / "tokenizer", template=tokenizer_toys.CHATML, post_processor_bos=request.param)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(tokenizer_models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    merges = trainers.BpeTrainer(vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=sorted(alphabet))
    backend.train_from_iterator([_TEXT], merges)
    if request.param:
        bos = [("<s>", backend.token_to_id("<s>"))]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=bos)
    backend.save(str(out / "tokenizer" / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    size = len(tokenizer)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    toy = toy_checkpoints.model(vocab_size=size, max_position_embeddings=CONTEXT, **ids)
    toy.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    return out / "model"


@pytest.fixture(scope="module")
def ours(directory: Path) -> Iterator[ScorerModel]:
    with open_scorer(str(directory), threads=1) as scorer:
        yield ScorerModel(scorer)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    # Its cache of logits gives wrong figures when one request's context is another's context and continuation (0.4.13).
    options = {"device": "cpu", "dtype": "float32", "batch_size": 2, "max_length": CONTEXT, "logits_cache": False}
    return HFLM(pretrained=str(directory), **options)


def _instances(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


PAIRS = [
    ("hello there", " another"),
    ("hello there ", "another"),  # the blank belongs to the continuation
    ("hello\n\n", "straight"),
    ("hel", "lo another hollow yellow"),  # one token over the seam
    ("", "the stream"),
    ("", "<s>the stream"),
    ("<s>the", " stream"),
    ("Stra", "ße, then another stream"),
    (_TEXT, " yellow"),  # too long: cut on the left
    (_TEXT * 2, " " + _TEXT[:80]),
    ("the", " " + _TEXT[:60]),
]


def test_likelihoods_are_those_of_the_harness(ours: ScorerModel, theirs: Any) -> None:
    assert all(theirs._encode_pair(*pair)[1] for pair in PAIRS if pair[0]), "the harness fails at such a seam"
    before = ours.counts["contexts_cut"]
    found = ours.loglikelihood(_instances("loglikelihood", PAIRS))
    expected = theirs.loglikelihood(_instances("loglikelihood", PAIRS), disable_tqdm=True)
    # float32 matrix products of other shapes, summed over up to 60 tokens of losses near 10.
    np.testing.assert_allclose([each[0] for each in found], [each[0] for each in expected], rtol=1e-5)
    assert [each[1] for each in found] == [each[1] for each in expected]
    assert ours.counts["contexts_cut"] - before == sum(len(ours.tok_encode(a + b)) > CONTEXT + 1 for a, b in PAIRS) > 0


@given(texts=st.tuples(*[st.text("the lo\nß", max_size=12)] * 2))
@settings(max_examples=30, deadline=None)
def test_seams_are_those_of_the_harness(ours: ScorerModel, theirs: Any, texts: tuple[str, str]) -> None:
    context, continuation = texts
    if not context or not continuation:
        return
    expected = theirs._encode_pair(context, continuation)
    found = ours._encode_pair(context, continuation)
    if expected[1]:
        assert tuple(found) == tuple(expected)
    else:  # the harness fails here
        whole = theirs.tok_encode(context + continuation)
        assert found[0] + found[1] in (whole, [ours.prefix_token_id, *whole])


def test_a_continuation_inside_a_token_is_scored(ours: ScorerModel) -> None:
    (before, after) = ours._encode_pair("yellow hel", "lo")
    assert before and after and ours.counts["seams_inside_a_token"] >= 1
    ((value, _),) = ours.loglikelihood(_instances("loglikelihood", [("yellow hel", "lo")]))
    assert math.isfinite(value) and value < 0


def test_whole_texts_are_those_of_the_harness(ours: ScorerModel, theirs: Any) -> None:
    texts = [("the stream",), (_TEXT,), (_TEXT * 3 + "hello",), ("t",)]
    found = ours.loglikelihood_rolling(_instances("loglikelihood_rolling", texts))
    expected = theirs.loglikelihood_rolling(_instances("loglikelihood_rolling", texts), disable_tqdm=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_answers_are_those_of_the_harness(ours: ScorerModel, theirs: Any) -> None:
    options = {"until": ["\n\n", "o"], "max_gen_toks": 12, "do_sample": False}
    arguments = [("hello there", options), (_TEXT, options), ("the", {**options, "until": [], "max_gen_toks": 8})]
    found = ours.generate_until(_instances("generate_until", arguments))
    assert found == theirs.generate_until(_instances("generate_until", arguments), disable_tqdm=True)
    assert any(found)


def test_conversations_are_those_of_the_harness(ours: ScorerModel, theirs: Any) -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the answer is"}]
    assert ours.apply_chat_template(messages[:1]) == theirs.apply_chat_template(messages[:1])
    open_end = ours.apply_chat_template(messages, add_generation_prompt=False)
    assert open_end == theirs.apply_chat_template(messages, add_generation_prompt=False)
    assert open_end.endswith("the answer is")


def test_drawn_answers_to_one_question_differ(ours: ScorerModel) -> None:
    options = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 2.0}
    found = ours.generate_until(_instances("generate_until", [("hello", options)] * 3))
    assert len(set(found)) > 1
    assert found == ours.generate_until(_instances("generate_until", [("hello", options)] * 3))


def test_generation_settings() -> None:
    assert generation_settings({"until": "\n", "max_gen_toks": 3}) == Settings(3, ("\n",))
    assert generation_settings({"do_sample": False, "temperature": 0.7, "top_p": 0.5, "top_k": 9}) == Settings(256)
    assert generation_settings({"temperature": 0.7, "top_p": 0.5, "seed": 3}) == Settings(256, (), 0.7, 0.5, 3)
    for wrong in ({"num_beams": 4}, {"temperature": 1.0, "top_k": 9}, {"no_repeat_ngram_size": 3}):
        with pytest.raises(InputError, match="cannot be done here"):
            generation_settings(wrong)


def test_what_does_not_fit_is_refused(ours: ScorerModel) -> None:
    with pytest.raises(InputError, match=r"context of .* is 96"):
        ours.loglikelihood(_instances("loglikelihood", [("a", _TEXT * 3)]))
    with pytest.raises(InputError, match="may have 96 tokens"):
        ours.generate_until(_instances("generate_until", [("a", {"max_gen_toks": 96})]))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    checkpoint = toy_checkpoints.write(root / "checkpoint", max_position_embeddings=512)
    export(checkpoint, root / "packed", verify=False)
    return {name: str(root / name) for name in ("checkpoint", "packed")}


def _report(model: str, words: list[str], **options: Any) -> TaskReport:
    with open_scorer(model, threads=1) as scorer:
        return run_tasks(scorer, load_tasks(words), TaskOptions(**options))


def test_one_checkpoint_has_the_same_scores_everywhere(models: dict[str, str]) -> None:
    one, other = (_report(model, ["exact_choice", "exact_answers"], limit=4) for model in models.values())
    for name, result in one.results.items():
        for metric, value in result.metrics.items():
            assert value == other.results[name].metrics[metric], (name, metric)
    assert one.results["exact_choice"].documents == 4 and one.results["exact_choice"].of == 100
    assert one.counts == other.counts
    json.dumps(one.to_json(), allow_nan=False)


def test_averages_of_presets_are_plain_means() -> None:
    a, b = figure([1.0, 0.0, 1.0, 1.0], np.mean, True), figure([0.0, 1.0], np.mean, True)
    assert a.standard_error == pytest.approx(0.25) and b.standard_error == pytest.approx(0.5)
    both = mean([a, b])
    assert both.value == 0.625 and both.standard_error == pytest.approx(math.hypot(0.25, 0.5) / 2)
    assert mean([a, b], [4, 2]).value == pytest.approx(4 / 6)
    assert figure([1.0], np.mean, True).standard_error is None
    # The median of 100 draws of a normal distribution: 1.2533 / 10, known within a tenth from 200 resamples.
    draws = np.random.default_rng(1).normal(size=100).tolist()
    assert figure(draws, np.median, False).standard_error == pytest.approx(0.12533, rel=0.35)
