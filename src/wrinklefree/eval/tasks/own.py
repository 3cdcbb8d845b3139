"""Tasks of ours in the harness's form, by name: generated ones, Python's documentation, summaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wrinklefree.eval.exact_tasks import ExactTask, exact_tasks, is_right
from wrinklefree.eval.tasks.documents import Documents
from wrinklefree.eval.tasks.summaries import cnn_dailymail

_OF_EACH_KIND = 20
_WRONG_CHOICES = 3
_MEAN = {"aggregation": "mean", "higher_is_better": True}


def _task(name: str, documents: Callable[[], Sequence[Mapping[str, Any]]], **settings: Any) -> dict[str, Any]:
    """Return a task over documents that are made when it is loaded."""

    def splits(**_: Any) -> dict[str, Documents]:
        return {"test": Documents(dict(document) for document in documents())}

    return {
        "task": name,
        "custom_dataset": splits,
        "test_split": "test",
        "metadata": {"version": 1.0},
        "num_fewshot": 0,
        **settings,
    }


def exact_answers() -> dict[str, Any]:
    """Return the task of writing the one right answer, see `eval.exact_tasks`."""
    return _task(
        "exact_answers",
        lambda: [{"kind": t.kind, "prompt": t.prompt, "answer": t.answer} for t in _questions()],
        output_type="generate_until",
        doc_to_text="prompt",
        doc_to_target="answer",
        process_results=_right,
        metric_list=[{"metric": "exact", **_MEAN}],
        generation_kwargs={"until": ["\n\n"], "max_gen_toks": 40, "do_sample": False},
    )


def _right(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    task = ExactTask(document["kind"], document["prompt"], document["answer"])
    return {"exact": float(is_right(task, results[0]))}


def exact_choice() -> dict[str, Any]:
    """Return the task of finding the right answer among wrong ones that are much like it, by their likelihood."""
    return _task(
        "exact_choice",
        _choices,
        output_type="multiple_choice",
        doc_to_text="prompt",
        doc_to_choice="choices",
        doc_to_target="label",
        target_delimiter="",
        metric_list=[{"metric": "acc", **_MEAN}, {"metric": "acc_norm", **_MEAN}],
    )


def _questions() -> list[ExactTask]:
    """Return the questions, kinds in turn, so that the first few are of all kinds."""
    tasks = exact_tasks(0, _OF_EACH_KIND)
    return [task for number in range(_OF_EACH_KIND) for task in tasks[number::_OF_EACH_KIND]]


def _choices() -> list[dict[str, Any]]:
    found = []
    answers: dict[str, list[str]] = {}
    for task in (questions := _questions()):
        answers.setdefault(task.kind, []).append(task.answer)
    for number, task in enumerate(questions):
        wrong = _wrong(task.answer, answers[task.kind])
        label = number % (_WRONG_CHOICES + 1)
        choices = [*wrong[:label], task.answer, *wrong[label:]]
        blank = "" if task.prompt.endswith("\n") else " "
        found.append({"prompt": task.prompt, "choices": [blank + choice for choice in choices], "label": label})
    return found


def _wrong(answer: str, others: Sequence[str]) -> list[str]:
    """Return wrong answers, nearly right ones first: two words in each other's place, a word of another answer."""
    words = answer.split(" ")
    first = others.index(answer) + 1
    found = [" ".join([*words[:1], words[2], words[1], *words[3:]])]
    for other in (others[(first + i) % len(others)] for i in range(len(others))):
        taken = other.split(" ")[:2]
        found += [" ".join([words[0], taken[-1], *words[2:]]), other]
    return [each for each in dict.fromkeys(found) if each != answer][:_WRONG_CHOICES]


def python_docs() -> dict[str, Any]:
    """Return the task of predicting Python's documentation: the topics that no training sees."""
    return _task(
        "python_docs",
        _topics,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="text",
        metric_list=[{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    )


def _topics() -> list[dict[str, Any]]:
    from wrinklefree.eval.text import PYTHON_DOCS, evaluation_documents

    return [{"id": document.id, "text": document.text} for document in evaluation_documents(PYTHON_DOCS)]


def movie_reviews() -> dict[str, Any]:
    """Return the task of telling whether a sentence on a film is positive, on the package's 1,000 test sentences.

    Source: the question is the one of lm-evaluation-harness's task sst2 (0.4.13), whose sentences are of this kind.
    """
    return _task(
        "movie_reviews",
        _sentences,
        output_type="multiple_choice",
        doc_to_text="{{text}}\nQuestion: Is this sentence positive or negative?\nAnswer:",
        doc_to_choice=["negative", "positive"],
        doc_to_target="label",
        metric_list=[{"metric": "acc", **_MEAN}],
    )


def _sentences() -> list[dict[str, Any]]:
    from wrinklefree.data.movie_reviews import NAMES
    from wrinklefree.data.movie_reviews import movie_reviews as records

    return [{"text": each["text"], "label": NAMES.index(each["label"])} for each in records("test")]


OWN: dict[str, Callable[[], dict[str, Any]]] = {
    "cnn_dailymail": cnn_dailymail,
    "exact_answers": exact_answers,
    "exact_choice": exact_choice,
    "movie_reviews": movie_reviews,
    "python_docs": python_docs,
}
