"""Perplexity of any model on any text: what `wf eval --perplexity` measures.

MODEL may be a packed directory (run by the engine, without torch), a converted checkpoint, a Hugging Face directory or
id, or a GGUF file. All go through `eval.loss`, so their figures compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from wrinklefree.data.document import Document
from wrinklefree.errors import InputError
from wrinklefree.eval.loss import AgreementReport, LossReport, OnWindow, agreement, scored_loss, without_tokens
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.scorer import Scorer, document_ids
from wrinklefree.eval.text import EvaluationText, evaluation_documents, evaluation_text


@dataclass(frozen=True)
class PerplexityReport:
    """``loss``: of the model. With a teacher, ``teacher`` is the teacher's and ``agreement`` compares the two."""

    model: str
    runs_on: str
    loss: LossReport
    teacher: LossReport | None = None
    agreement: AgreementReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        found: dict[str, Any] = {"model": self.model, "runs_on": self.runs_on, **self.loss.to_json()}
        if self.teacher and self.agreement:
            found |= {"teacher": self.teacher.to_json(), "agreement": self.agreement.to_json()}
        return found


def perplexity(
    model: str,
    text: str,
    *,
    window: int = 512,
    stride: int | None = None,
    limit_tokens: int | None = None,
    teacher: str | None = None,
    threads: int | None = None,
    on_window: OnWindow | None = None,
    say: Callable[[str], None] = print,
) -> PerplexityReport:
    """Return the loss of ``model`` on ``text``: a file, a directory, or ``python-docs`` (its held-out topics).

    ``limit_tokens``: score about so many, spread over the text. ``teacher``: a second model to compare with; it is
    scored on the same token ids, so it must share the vocabulary.

    Raises: InputError when a model or text cannot be read, or the window is longer than a model's context.
    """
    documents = evaluation_documents(text)  # before the model: a wrong file name should not cost a loading time
    with open_scorer(model, threads, say) as scorer:
        windows = text_windows(scorer, documents, text, window, stride, limit_tokens)
        loss = scored_loss(scorer, windows, on_window)
        if teacher is None:
            return PerplexityReport(model, scorer.runs_on, loss)
        with open_scorer(teacher, threads, say) as other:
            check_context(other, windows)
            if any(document_ids(other, each.text) != document_ids(scorer, each.text) for each in documents):
                raise InputError(f"teacher {teacher}: its tokenizer splits the text differently than {model}'s")
            theirs = scored_loss(other, windows, on_window)
            return PerplexityReport(model, scorer.runs_on, loss, theirs, compare(other, scorer, windows, on_window))


def text_windows(
    scorer: Scorer, documents: Sequence[Document], name: str, window: int, stride: int | None, limit: int | None
) -> EvaluationText:
    """Return a text in the tokens of a model. Raises: InputError when a window is longer than its context."""
    windows = evaluation_text(documents, partial(document_ids, scorer), window, stride, name)
    windows = windows if limit is None else windows.limited(limit)
    check_context(scorer, windows)
    return windows


def compare(teacher: Scorer, student: Scorer, text: EvaluationText, on_window: OnWindow | None) -> AgreementReport:
    """Return how alike two models predict a text, over the tokens that the student can write."""
    if teacher.logits is None or student.logits is None:
        from wrinklefree.eval.top_agreement import top_agreement

        return top_agreement(teacher, student, text, on_window)
    # Its MASK may even lie outside the teacher's vocabulary.
    comparable = without_tokens(teacher.logits, student.diffusion.never if student.diffusion else ())
    return agreement(comparable, student.logits, text, on_window)


def check_context(scorer: Scorer, text: EvaluationText) -> None:
    """Raise InputError when a window is longer than the model's context."""
    longest = max(len(window.tokens) for window in text.windows)
    # Logits are asked for behind the last token too; a server's `context` leaves a place for it.
    most = None if scorer.context is None else scorer.context + (scorer.logits is None)
    if most is not None and longest > most:
        raise InputError(f"window {text.window}: {scorer.name} has a context of {most} tokens; choose less")
