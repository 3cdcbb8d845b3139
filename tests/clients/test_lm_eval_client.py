"""lm-evaluation-harness over HTTP (`local-completions`): its log-likelihoods and texts against the engine's own.

A difference of float32 rounding is allowed for a log-likelihood: 1e-5 a token of a continuation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from served import KEY, Served

lm_eval = pytest.importorskip("lm_eval", reason="not checked: lm-eval's local-completions against the server")
from lm_eval.tasks import TaskManager  # noqa: E402

ROWS = [
    {"question": "The sky is", "choices": [" blue", " a fish", " é"], "answer": 0},
    {"question": "Two and two make", "choices": [" four", " five", " nothing at all"], "answer": 0},
    {"question": "\nÜber den Wolken", "choices": [" muss", " kann es", " 🙂"], "answer": 1},
]
CHOICE = """\
task: toy_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}]
"""
GO_ON = """\
task: toy_go_on
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["STOP", "\\n\\n\\n"], max_gen_toks: 24, temperature: 0}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    """Two tasks in files of their own over local data; nothing is looked up or kept elsewhere."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in (("choice", CHOICE), ("go_on", GO_ON)):
        (folder / f"{name}.yaml").write_text(text.replace("DATA", json.dumps(str(data))))
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(
    served: Served, manager: TaskManager, task: str, chat: bool = False, **options: Any
) -> list[dict[str, Any]]:
    route, model = ("chat/completions", "local-chat-completions") if chat else ("completions", "local-completions")
    arguments = {
        "model": served.model, "base_url": f"{served.url}/{route}", "max_retries": 1, "max_length": 1024,
        "auth_token": KEY, **options,
    }  # fmt: skip
    found = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=[task], task_manager=manager, apply_chat_template=chat,
        log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    assert found is not None
    return sorted(found["samples"][task], key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize(
    "options",
    [
        {"tokenized_requests": True, "tokenizer_backend": "huggingface"},
        {"tokenized_requests": True, "tokenizer_backend": "huggingface", "batch_size": 4, "num_concurrent": 3},
        {"tokenized_requests": False, "tokenizer_backend": "huggingface"},
        {"tokenized_requests": True, "tokenizer_backend": "remote"},
    ],
    ids=["ids", "ids in batches", "text", "the server's tokenizer"],
)
def test_log_likelihoods_are_the_engines(options: dict[str, Any], served: Served, tasks: TaskManager) -> None:
    if options["tokenizer_backend"] == "huggingface":
        options = {**options, "tokenizer": str(served.directory)}
    samples = evaluate(served, tasks, "toy_choice", **options)
    assert len(samples) == len(ROWS)
    bodies, found = [], []
    for sample in samples:
        for argument, answer in zip(sample["arguments"], sample["resps"], strict=True):
            bodies.append([part.encode() for part in argument])
            found.append(answer[0])
    tokens = served.own("tokens", [(context + rest).decode() for context, rest in bodies])
    for (_, rest), own, (value, greedy) in zip(bodies, served.own("score", tokens), found, strict=True):
        count = len(rest)  # a token a byte
        assert value == pytest.approx(sum(own["logprobs"][-count:]), abs=1e-5 * count)
        assert greedy == all(own["greedy"][-count:])


def test_generated_texts_are_the_engines(served: Served, tasks: TaskManager) -> None:
    samples = evaluate(served, tasks, "toy_go_on", tokenizer_backend="huggingface", tokenizer=str(served.directory))
    tokens = served.own("tokens", [row["question"] for row in ROWS])
    own = served.own("continue", [{"tokens": ids, "max_tokens": 24} for ids in tokens])
    for sample, text in zip(samples, own, strict=True):
        for stop in ("STOP", "\n\n\n"):
            text = text.partition(stop)[0]
        assert sample["resps"][0][0] == text


def test_chats_are_the_chat_routes_answers(served: Served, tasks: TaskManager) -> None:
    samples = evaluate(served, tasks, "toy_go_on", chat=True)
    client = openai.OpenAI(base_url=served.url, api_key=KEY)
    for sample, row in zip(samples, ROWS, strict=True):
        answer = client.chat.completions.create(
            model=served.model, messages=[{"role": "user", "content": row["question"]}], max_tokens=24, temperature=0
        )
        text = answer.choices[0].message.content
        assert sample["resps"][0][0] == text.partition("STOP")[0].partition("\n\n\n")[0]
