"""A classifier on labelled examples: what `wf eval CLASSIFIER --labelled` measures.

The classifier may be ternary (at full quantisation strength), in full precision, or a foreign one that transformers
loads. Its class names are its config's. Texts are encoded exactly as in training (`data.supervised`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.data.document import SourceConfig
from wrinklefree.errors import InputError
from wrinklefree.eval.class_figures import Agreement, ClassFigures, agreement, class_figures
from wrinklefree.eval.result import Figure

if TYPE_CHECKING:
    from wrinklefree.data.records import Record
    from wrinklefree.data.supervised import TaskConfig
    from wrinklefree.data.tokens import TextEncoder

_TOKENS = 2048  # of a batch, filling included


@dataclass(frozen=True)
class LabelledText:
    """Checked records and how they are read. ``name``: what the user called them; ``source``: where they were read."""

    name: str
    source: SourceConfig
    task: TaskConfig
    records: tuple[Record, ...]


@dataclass(frozen=True)
class ClassifierReport:
    """``classes``: their names. ``truncated``: texts that lost tokens beyond ``window`` or the model's context.

    ``how`` it ran, as of a scorer. With a teacher, ``teacher`` are the teacher's own figures and ``agreement`` compares
    the two.
    """

    model: str
    text: LabelledText
    window: int
    truncated: int
    classes: tuple[str, ...]
    found: ClassFigures
    how: dict[str, Any]
    teacher: ClassFigures | None = None
    agreement: Agreement | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        source = {name: value for name, value in asdict(self.text.source).items() if value is not None}
        found: dict[str, Any] = {
            "labelled": {"name": self.text.name, "source": source, "window": self.window, "truncated": self.truncated},
            "classes": list(self.classes),
            "classification": self.found.to_json(),
        }
        if self.teacher and self.agreement:
            found |= {"teacher": self.teacher.to_json(), "agreement": self.agreement.to_json()}
        return found

    def figures(self) -> list[Figure]:
        """Return what is worth a row of a table."""
        settings = {"labelled": self.text.name, "examples": self.found.examples, "window": self.window}
        share = self.found.accuracy
        figures = [
            Figure("accuracy", share, math.sqrt(share * (1.0 - share) / self.found.examples), True, settings),
            Figure("F1", self.found.macro_f1, None, True, settings),
            Figure("MCC", self.found.mcc, None, True, settings),
            Figure("class loss, nats", self.found.loss, None, False, settings),
        ]
        if self.agreement:
            figures.append(Figure("same class as the teacher", self.agreement.same, None, True, settings))
        return figures

    def lines(self) -> list[str]:
        """Return what was found in words, for the terminal."""
        found = self.found
        each = ", ".join(f"{name} {value:.3f}" for name, value in zip(self.classes, found.f1, strict=True))
        lines = [
            f"{self.model} on {self.text.name}: accuracy {found.accuracy:.2%} (95 %: {found.low:.2%} to "
            f"{found.high:.2%}) on {found.examples:,} examples, the most frequent class {found.majority:.2%}; F1 "
            f"{found.macro_f1:.3f} ({each}), MCC {found.mcc:.3f}, loss {found.loss:.4f} nats"
        ]
        if self.truncated:
            lines.append(f"{self.truncated} texts lost what is beyond {self.window} tokens or the model's context")
        if self.teacher and self.agreement:
            alike = self.agreement
            lines.append(
                f"teacher: accuracy {self.teacher.accuracy:.2%}; same class {alike.same:.2%}, KL {alike.kl:.4f} nats; "
                f"right alone {alike.only_model} against the teacher's {alike.only_teacher} (p = {alike.p_value:.2g})"
            )
        return lines


def labelled_text(name: str, settings: Sequence[str] = (), limit: int | None = None) -> LabelledText:
    """Return the examples of a jsonl file (all of them) or of a named data set (its held-out split).

    ``name``: as after ``data=`` of `wf train`. ``settings``: ``KEY=VALUE`` of the recipe's ``task``, such as
    ``text=sentence``. ``limit``: at most so many, the first ones.

    Raises: InputError for what cannot be found or read, or a task that is not of one class.
    """
    from wrinklefree.data.records import read_records
    from wrinklefree.data.supervised import checked, held_out_source
    from wrinklefree.train.compose import compose

    if name.endswith(".jsonl") and not Path(name).is_file():
        raise InputError(f"--labelled {name}: no such file")
    recipe = compose(["training=classification", f"data={_path(name)}", *(f"task.{each}" for each in settings)])
    task, (source,) = recipe.task, recipe.data.sources.values()
    assert task is not None
    if task.kind != "classification" or task.problem != "single_label":
        raise InputError(f"--labelled {name}: found task.problem={task.problem}; only single_label is measured")
    source = held_out_source(task, source) or source
    records = tuple(checked(record, task) for record in read_records(source)[:limit])
    return LabelledText(name, source, task, records)


def _path(name: str) -> str:
    return f"./{name}" if "/" not in name and Path(name).exists() else name


def evaluate_classifier(
    model: str,
    text: LabelledText,
    *,
    window: int = 512,
    teacher: str | None = None,
    threads: int | None = None,
    on_example: Callable[[int, int], None] | None = None,
) -> ClassifierReport:
    """Return how well ``model`` names the classes of ``text``, and how well it agrees with a ``teacher`` for the same.

    ``window``: tokens of the longest row, at most the model's context; a longer text loses its end, of two the longer.

    Raises: InputError when a model is no classifier, or its classes are not those of the text.
    """
    ours = _run(model, text, window, threads, on_example)
    found = class_figures(ours.logits, ours.classes)
    report = ClassifierReport(model, text, window, ours.truncated, ours.names, found, ours.how)
    if teacher is None:
        return report
    theirs = _run(teacher, text, window, threads, on_example)
    if sorted(theirs.names) != sorted(ours.names):
        raise InputError(f"teacher {teacher}: is a classifier for {list(theirs.names)}, {model} for {list(ours.names)}")
    logits = theirs.logits[:, [theirs.names.index(name) for name in ours.names]]
    return replace(
        report,
        teacher=class_figures(logits, ours.classes),
        agreement=agreement(ours.logits, logits, ours.classes),
    )


@dataclass(frozen=True)
class _Run:
    """``logits`` [N, C] and right ``classes`` [N] of N texts, ``truncated`` of which lost tokens; C ``names``."""

    logits: NDArray[np.float64]
    classes: NDArray[np.int64]
    truncated: int
    names: tuple[str, ...]
    how: dict[str, Any]


def _run(
    source: str, text: LabelledText, window: int, threads: int | None, on_example: Callable[[int, int], None] | None
) -> _Run:
    from wrinklefree.data.supervised import classified, texts_of
    from wrinklefree.data.tokens import TextEncoder
    from wrinklefree.eval.opening import load_torch
    from wrinklefree.eval.torch_scorer import described, own_tokenizer
    from wrinklefree.models.classification import class_names
    from wrinklefree.models.pooling import has_class_head
    from wrinklefree.quant.bitlinear import full_strength

    if window < 4:
        raise InputError(f"window {window}: at least 4 tokens are needed")
    model, tokenizer, _ = load_torch(source, threads)
    if not has_class_head(model):
        raise InputError(
            f"{source}: is no classifier; --labelled measures one that training=teacher_finetune, classification or "
            "bitdistill made"
        )
    names, how = class_names(model), described(model)
    classes = _classes(text, names, source)
    encoder: TextEncoder = TextEncoder.of(own_tokenizer(tokenizer))
    longest = min(window, how["context"] or window)
    rows = [classified(texts_of(record, text.task), text.task, encoder, longest) for record in text.records]
    with full_strength(model):
        logits = _classify(model, [ids for ids, _, _ in rows], on_example)
    return _Run(logits, classes, sum(cut for _, _, cut in rows), names, how)


def _classify(model: Any, rows: list[list[int]], on_example: Callable[[int, int], None] | None) -> NDArray[np.float64]:
    """Return logits [N, C] of N rows of tokens, computed longest first, in batches of rows of about one length."""
    import torch

    from wrinklefree.models.classification import class_names, classify
    from wrinklefree.quant.bitlinear import held_codes

    found = np.empty((len(rows), len(class_names(model))))
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    done = 0
    with torch.inference_mode(), held_codes(model):
        while done < len(order):
            longest = len(rows[order[done]])
            batch = order[done : done + max(_TOKENS // longest, 1)]
            ids, mask = torch.zeros(len(batch), longest, dtype=torch.int64), torch.zeros(len(batch), longest)
            for row, i in enumerate(batch):
                ids[row, : len(rows[i])] = torch.tensor(rows[i])
                mask[row, : len(rows[i])] = 1.0
            found[batch] = classify(model, ids, mask.long()).double().numpy()
            done += len(batch)
            if on_example:
                on_example(done, len(order))
    return found


def _classes(text: LabelledText, names: tuple[str, ...], source: str) -> NDArray[np.int64]:
    """Return the number, among ``names``, of each record's class.

    A data set with named classes gives numbers of its own, so they go by its names; a model whose config names none
    (LABEL_0, LABEL_1 and so on) is taken to count them alike.
    """
    from wrinklefree.data.supervised import classes_of

    theirs = text.task.labels
    if not theirs or not text.records:
        return np.asarray(classes_of(text.records, text.task, names).numpy(), dtype=np.int64)
    numbers = np.asarray(classes_of(text.records, text.task, theirs).numpy(), dtype=np.int64)
    if names == tuple(f"LABEL_{i}" for i in range(len(theirs))):
        return numbers
    if sorted(theirs) != sorted(names):
        raise InputError(f"{source}: is a classifier for {list(names)}, {text.name} has {list(theirs)}")
    return np.array([names.index(name) for name in theirs])[numbers]
