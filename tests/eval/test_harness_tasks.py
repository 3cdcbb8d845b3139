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

from wrinklefree.cli.main import main
from wrinklefree.errors import InputError
from wrinklefree.eval.exact_tasks import exact_tasks
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.rouge import bleu, rouge
from wrinklefree.eval.scorer import Settings
from wrinklefree.eval.tasks import catalog, hub
from wrinklefree.eval.tasks.catalog import load_tasks
from wrinklefree.eval.tasks.figures import estimate, mean
from wrinklefree.eval.tasks.presets import FOLDERS, PRESETS
from wrinklefree.eval.tasks.run import TaskOptions, TaskReport, run_tasks
from wrinklefree.eval.tasks.summaries import summaries as task_of_summaries
from wrinklefree.export.export import export

pytest.importorskip("lm_eval", reason="the harness is not installed: its tasks were not run")
pytest.importorskip("wrinklefree._native", reason="the engine is not built")
import lm_eval.tasks
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
    arguments = [
        ("hello there", options),
        (_TEXT * 3 + "hello", options),
        ("the", {**options, "until": [], "max_gen_toks": 8}),
    ]
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
    options = {"until": [], "max_gen_toks": 4, "do_sample": True, "temperature": 2.0}
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
    """Torch, the engine and a server over HTTP."""
    from running_server import RunningServer

    words = ["exact_choice", "exact_answers"]
    one, other = (_report(model, words, limit=2) for model in models.values())
    with RunningServer(Path(models["packed"])) as server:
        over_http = _report(server.url, words, limit=2)
    for name, result in one.results.items():
        assert result.metrics == other.results[name].metrics == over_http.results[name].metrics
    assert other.results["exact_answers"].texts == over_http.results["exact_answers"].texts
    assert one.results["exact_choice"].documents == 2 and one.results["exact_choice"].of == 100
    assert one.counts == other.counts == over_http.counts
    json.dumps(one.to_json(), allow_nan=False)


def test_the_choices_of_exact_questions() -> None:
    documents = load_tasks(["exact_choice"]).tasks["tasks"]["exact_choice"].eval_docs
    right = {task.prompt: task.answer for task in exact_tasks(0, 20)}
    assert len(documents) == len(right) == 100
    for each in documents:
        choices = [choice.removeprefix(" ") for choice in each["choices"]]
        assert len(set(choices)) == 4 and choices[each["label"]] == right[each["prompt"]]
    assert {each["label"] for each in documents} == {0, 1, 2, 3}
    kinds = [task.kind for task in exact_tasks(0, 20)]
    firsts = [kinds[list(right).index(each["prompt"])] for each in documents[:5]]
    assert len(set(firsts)) == 5  # a limit takes questions of all kinds


def test_averages_of_presets_are_plain_means() -> None:
    a, b = estimate([1.0, 0.0, 1.0, 1.0], np.mean, True), estimate([0.0, 1.0], np.mean, True)
    assert a.standard_error == pytest.approx(0.25) and b.standard_error == pytest.approx(0.5)
    both = mean([a, b])
    assert both.value == 0.625 and both.standard_error == pytest.approx(math.hypot(0.25, 0.5) / 2)
    assert mean([a, b], [4, 2]).value == pytest.approx(4 / 6)
    assert estimate([1.0], np.mean, True).standard_error is None
    # The median of 100 draws of a normal distribution: 1.2533 / 10, known within a tenth from 200 resamples.
    draws = np.random.default_rng(1).normal(size=100).tolist()
    assert estimate(draws, np.median, False).standard_error == pytest.approx(0.12533, rel=0.35)


def _write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


_TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task of the user's, whose data lie beside it and not where the command runs."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"question": f"Is {i} even?", "answer": i % 2}) for i in range(7)]
    _write(tmp_path / "tasks", "data.jsonl", "\n".join(lines))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return _write(tmp_path / "tasks", "even.yaml", _TASK.format(name="even", data="data.jsonl"))


@pytest.mark.filterwarnings("ignore")  # of the reader of data sets
def test_a_task_of_the_users(own_task: Path, models: dict[str, str]) -> None:
    with open_scorer(models["packed"], threads=1) as scorer:
        plain, shots = (
            run_tasks(scorer, load_tasks([str(where)]), TaskOptions(shots=number))
            for where, number in ((own_task, None), (own_task.parent, 2))
        )
    result = plain.results["even"]
    assert (result.documents, result.of, result.shots, result.data) == (7, 7, 0, "json test")
    assert result.metrics["acc"].value in [i / 7 for i in range(8)]
    assert shots.results["even"].shots == 2
    asked = [each.to_json() for each in (*plain.figures(), *shots.figures())]
    assert asked[0]["name"] == asked[1]["name"] == "even: acc" and asked[0]["settings"] != asked[1]["settings"]


@pytest.mark.filterwarnings("ignore")  # of the reader of data sets
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("\nno_such_key: 3", "no_such_key"),
        ("\n  - a: [", "cannot be read as a task"),
        ("\nprocess_docs: !function run.me", "lets Python files run"),
        ("\ninclude: other.yaml", "other.yaml lets Python files run"),
    ],
)
def test_a_users_mistakes(own_task: Path, change: str, message: str) -> None:
    _write(own_task.parent, "other.yaml", "process_docs: !function run.me\n")
    own_task.write_text(own_task.read_text() + change)
    with pytest.raises(InputError, match=message):
        load_tasks([str(own_task)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "found no task"),
        (["no/such.yaml"], "no such file"),
        (["exact_chioce"], "did you mean 'exact_choice'"),
    ],
)
def test_words_that_name_no_task(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_names", dict)  # not the 14,000 files of the harness
    with pytest.raises(InputError, match=message):
        load_tasks(words)
    with pytest.raises(InputError, match="found no task in it"):
        load_tasks([str(tmp_path)])


def test_missing_data_files_are_named(own_task: Path) -> None:
    (own_task.parent / "data.jsonl").unlink()
    with pytest.raises(InputError, match=r"task even: data_files: .*data.jsonl: no such file"):
        load_tasks([str(own_task)])


@pytest.fixture
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network, whatever this machine has; the questions asked."""
    import datasets

    asked: list[str] = []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "is_reachable", lambda: asked.append("hub"))
    monkeypatch.setattr(datasets, "load_dataset", lambda **each: asked.append(each["path"]))
    return asked


@pytest.mark.parametrize("preset", ["avg-5", "avg-8", "glue", "bitdistill", "bitnet-2b4t"])
def test_tasks_without_data_say_so_at_once(
    preset: str, nobody_answers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(InputError) as found:
        load_tasks([preset])
    # The harness has every task of the preset, each needs its data, and no data set was asked for.
    assert all(f"{task} (" in str(found.value) for task in PRESETS[preset].tasks)
    assert nobody_answers == ["hub"]
    glue = {"sst2", "mnli", "qnli"} & {*PRESETS[preset].tasks}
    assert all(f"{task} (nyu-mll/glue {task})" in str(found.value) for task in glue)
    assert "cnn_dailymail" not in PRESETS[preset].tasks or "(abisee/cnn_dailymail 3.0.0)" in str(found.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        load_tasks([preset])
    assert nobody_answers == ["hub"]


def test_the_literatures_sets() -> None:
    assert sorted(PRESETS["avg-5"].tasks) == ["arc_challenge", "arc_easy", "hellaswag", "piqa", "winogrande"]
    assert len(PRESETS["avg-8"].tasks) == 8 and {*PRESETS["avg-5"].tasks} < {*PRESETS["avg-8"].tasks}
    assert set(PRESETS["avg-8"].tasks) - set(PRESETS["avg-5"].tasks) == {"boolq", "social_iqa", "openbookqa"}
    harness = Path(lm_eval.tasks.__file__).parent
    for task, folder in FOLDERS.items():
        texts = (file.read_text() for file in (harness / folder).rglob("*.yaml"))
        assert any(f"task: {task}\n" in text for text in texts), task


@pytest.mark.filterwarnings("ignore")  # of the reader of data sets
def test_prepared_data_are_read_without_a_network(
    own_task: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set in the cache of the `datasets` package, as one from the hub lies there."""
    import datasets

    cache = Path(str(datasets.config.HF_DATASETS_CACHE))
    datasets.load_dataset("json", data_files={"test": str(own_task.parent / "data.jsonl")}, cache_dir=str(cache))
    (prepared,) = (cache / "json").iterdir()
    (file,) = prepared.rename(cache / "json" / "default").rglob("json-test.arrow")
    file.rename(file.with_name("two_words-test.arrow"))
    (cache / "json").rename(cache / "someone___two_words")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    text = own_task.read_text().replace("dataset_path: json", "dataset_path: someone/TwoWords")
    own_task.write_text("\n".join(line for line in text.splitlines() if "data" not in line or "path" in line))
    loaded = load_tasks([str(own_task)])
    assert len(loaded.tasks["tasks"]["even"].eval_docs) == 7
    own_task.write_text(own_task.read_text().replace("TwoWords", "ThreeWords"))
    with pytest.raises(InputError, match=r"even .someone/ThreeWords. are not on this machine"):
        load_tasks([str(own_task)])


@pytest.mark.filterwarnings("ignore")  # of the reader of data sets
def test_groups_find_their_tasks_in_other_folders(
    own_task: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small library in the harness's form instead of its own: a group over two folders, and a tag."""
    root = own_task.parent / "library"
    data = own_task.parent / "data.jsonl"
    _write(root / "one", "a.yaml", f"tag: [some, few]\n{_TASK.format(name='first', data=data)}")
    _write(root / "two", "b.yaml", f"tag:\n  - some\n{_TASK.format(name='second', data=data)}")
    aggregate = "aggregate_metric_list: [{metric: acc, weight_by_size: false}]"
    _write(root / "sets", "c.yaml", f"group: both\ntask:\n  - first\n  - second\n{aggregate}\n")
    monkeypatch.setattr(catalog, "_root", lambda: root)
    catalog._names.cache_clear()
    try:
        with open_scorer(models["packed"], threads=1) as scorer:
            report = run_tasks(scorer, load_tasks(["both"]), TaskOptions(limit=3))
        assert list(report.results) == ["first", "second"]
        average = report.averages["both"]["means"]["acc"]
        one = report.results["first"].metrics["acc"]
        assert average["value"] == one.value and average["standard_error"] == pytest.approx(one.standard_error / 2**0.5)
        assert list(load_tasks(["some"]).tasks["tasks"]) == ["first", "second"]
        assert list(load_tasks(["few", "second"]).tasks["tasks"]) == ["first", "second"]
    finally:
        catalog._names.cache_clear()


def test_summaries(tmp_path: Path, models: dict[str, str]) -> None:
    lines = [json.dumps({"document": f"Article {i}. It is short.", "summary": "Short article."}) for i in range(1)]
    file = _write(tmp_path, "some.jsonl", "\n".join(lines))
    with open_scorer(models["packed"], threads=1) as scorer:
        report = run_tasks(scorer, load_tasks([], summaries=file))
    (result,) = report.results.values()
    assert list(result.metrics) == ["rouge1", "rouge2", "rougeL", "rougeLsum", "bleu"]
    texts = [(each["reference"], each["hypothesis"]) for each in result.texts]
    assert [reference for reference, _ in texts] == ["Short article."]
    assert result.metrics["bleu"].value == bleu(texts)
    assert result.metrics["rouge1"].value == pytest.approx(np.mean([rouge(*each)["rouge1"] for each in texts]))
    scored = task_of_summaries(file)["process_results"]({"highlights": "A short one."}, ["One short."])
    assert scored == {**rouge("A short one.", "One short."), "bleu": ("A short one.", "One short.")}
    _write(tmp_path, "some.jsonl", '{"article": "a", "summary": "b"}')
    with pytest.raises(
        InputError, match="line 1: found the fields article, summary; needed are article and highlights"
    ):
        load_tasks([], summaries=file)


def test_wf_eval_with_tasks(models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", models["packed"], "--tasks", "exact_choice", "--limit", "2", "--threads", "1"]
    assert main([*words, "--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]) == 0
    document = json.loads((tmp_path / "a.json").read_text())
    figures = {each["name"]: each for each in document["figures"]}
    assert set(figures) == {"exact_choice: acc", "exact_choice: acc_norm"}  # and no text, which nobody asked for
    assert document["tasks"]["results"]["exact_choice"]["primary"] == "acc_norm"
    assert document["tasks"]["settings"]["limit"] == document["settings"]["limit"] == 2
    assert "exact_choice: acc_norm" in (tmp_path / "a.md").read_text()
    assert "exact_choice: acc " in capsys.readouterr().out
    assert main([*words, "--perplexity", "python-docs"]) == 2
    assert "--limit: counts tokens" in capsys.readouterr().err


def test_data_are_asked_for_before_the_model(
    nobody_answers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    assert main(["eval", "no/such/model", "--tasks", "avg-5"]) == 2
    message = capsys.readouterr().err
    assert "piqa (baber/piqa)" in message and "no/such/model" not in message
