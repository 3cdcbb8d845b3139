"""The task of summing up articles: CNN/DailyMail from the hub, or articles with summaries in a JSONL file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wrinklefree.data.document import SourceConfig
from wrinklefree.data.records import Record, read_records
from wrinklefree.errors import InputError
from wrinklefree.eval.rouge import ROUGE, bleu, rouge
from wrinklefree.eval.tasks.documents import Documents

CNN_DAILYMAIL = "abisee/cnn_dailymail"
_VERSION = "3.0.0"
_NEW_TOKENS = 128
# Field of the article -> field of its summary, as CNN/DailyMail, XSum and others name them.
_FIELDS = {"article": "highlights", "document": "summary", "dialogue": "summary", "text": "summary"}


def cnn_dailymail() -> dict[str, Any]:
    """Return the task on CNN/DailyMail 3.0.0 (test, 11,490 articles), its data from the hub.

    Source: arXiv 2510.13998 (BitNet Distillation), section 4: at most 128 new tokens. The prompt is the one of
    lm-evaluation-harness's task cnn_dailymail_abisee (0.4.13). Differs: that task has no BLEU and no rougeLsum.
    """
    return _task(
        "cnn_dailymail", dataset_path=CNN_DAILYMAIL, dataset_name=_VERSION, test_split="test"
    )  # fmt: skip


def summaries(file: Path) -> dict[str, Any]:
    """Return the task on a JSONL file with an article and its summary on each line.

    Raises: InputError when it cannot be read, or a line lacks a field.
    """
    records = read_records(SourceConfig(kind="jsonl", path=str(file)))
    documents = [_document(record) for record in records]

    def splits(**_: Any) -> dict[str, Documents]:
        return {"test": Documents(documents)}

    return _task(f"summaries:{file.name}", custom_dataset=splits, test_split="test")


def _document(record: Record) -> dict[str, str]:
    for article, summary in _FIELDS.items():
        if article in record.values and summary in record.values:
            found = {"article": record.values[article], "highlights": record.values[summary]}
            if all(isinstance(text, str) and text.strip() for text in found.values()):
                return found
            raise InputError(f"{record.place}: {article} and {summary} must both be text")
    pairs = " or ".join(f"{article} and {summary}" for article, summary in _FIELDS.items())
    raise InputError(f"{record.place}: found the fields {', '.join(record.values)}; needed are {pairs}")


def _task(name: str, **data: Any) -> dict[str, Any]:
    mean = {"aggregation": "mean", "higher_is_better": True}
    together: Callable[[Sequence[tuple[str, str]]], float] = bleu
    return {
        "task": name,
        **data,
        "output_type": "generate_until",
        "doc_to_text": "Summarize the following article:\n\n{{article}}\n\nSummary:",
        "doc_to_target": "{{highlights}}",
        "process_results": _scores,
        "metric_list": [
            *({"metric": metric, **mean} for metric in ROUGE),
            {"metric": "bleu", "aggregation": together, "higher_is_better": True},
        ],
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": _NEW_TOKENS, "do_sample": False},
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }


def _scores(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    reference, hypothesis = document["highlights"], results[0]
    return {**rouge(reference, hypothesis), "bleu": (reference, hypothesis)}
