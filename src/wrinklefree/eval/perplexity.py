"""Perplexity of any model on any text: what `wf eval --perplexity` measures.

MODEL may be a packed directory (run by the engine, without torch), a converted checkpoint, a Hugging Face directory or
id, or a GGUF file. All go through `eval.loss`, so their figures compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from wrinklefree.data.document import Document
from wrinklefree.errors import InputError
from wrinklefree.eval.loss import AgreementReport, LossReport, OnWindow, agreement, scored_loss, without_tokens
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.result import Figure
from wrinklefree.eval.scorer import Scorer, document_ids
from wrinklefree.eval.text import EvaluationText, evaluation_documents, evaluation_text


@dataclass(frozen=True)
class TextOptions:
    """What is scored. ``text``: a file, a directory, or ``python-docs`` (its held-out topics).

    ``stride`` None: the window. ``limit_tokens``: about so many, spread over the text.
    """

    text: str
    window: int = 512
    stride: int | None = None
    limit_tokens: int | None = None


@dataclass(frozen=True)
class PerplexityReport:
    """``loss``: of the model. With a teacher, ``teacher`` is the teacher's and ``agreement`` compares the two.

    ``text_sha256``: of the documents' texts. ``teacher_model``: the teacher's name. ``no_ar``: why a diffusion
    model was not trained to predict a text token by token, so that these figures say little, or ''.
    """

    model: str
    runs_on: str
    loss: LossReport
    teacher: LossReport | None = None
    agreement: AgreementReport | None = None
    text_sha256: str | None = None
    limit: int | None = None
    teacher_model: str | None = None
    no_ar: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        found: dict[str, Any] = {"model": self.model, "runs_on": self.runs_on, **self.loss.to_json()}
        found |= {"text_sha256": self.text_sha256, "limit": self.limit, "no_ar": self.no_ar}
        if self.teacher and self.agreement:
            found |= {"teacher_model": self.teacher_model, "teacher": self.teacher.to_json()}
            found["agreement"] = self.agreement.to_json()
        return found

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        found = [f"{self.model} ({self.runs_on}): {self.loss.line()}"]
        if self.no_ar:
            found.append(f"WARNING: this is no measure of the model: {self.no_ar}; use --likelihood block")
        if self.teacher and self.agreement:
            alike = self.agreement
            at_least = "" if alike.kl_top is None else f" at least (the {alike.kl_top} most likely tokens and the rest)"
            found.append(f"{self.teacher_model}: {self.teacher.line()}")
            found.append(
                f"agreement: KL {alike.kl:.4f} nats{at_least}, same first token {alike.top1:.2%}, "
                f"answers that flip {alike.flips:.2%}"
            )
        return found

    def figures(self) -> list[Figure]:
        """Return perplexity, bits per byte, and the agreement with the teacher."""
        loss, found = self.loss, []
        same = {"text": loss.text, "sha256": (self.text_sha256 or "")[:12] or None, "window": loss.window,
                "stride": loss.stride, "limit": self.limit}  # fmt: skip
        tokens = {**same, "tokens": loss.tokens}
        spread = loss.standard_error
        error = None if spread is None else loss.perplexity * spread
        found.append(Figure("perplexity", loss.perplexity, error, False, tokens))
        if loss.bits_per_byte is not None:
            error = None if spread is None else loss.bits_per_byte * spread / loss.loss
            found.append(Figure("bits a byte", loss.bits_per_byte, error, False, same))
        if self.agreement:
            pair, kl_top = {**tokens, "teacher": self.teacher_model}, self.agreement.kl_top
            name = "KL" if kl_top is None else "KL at least"
            found += [
                Figure(name, self.agreement.kl, None, False, {**pair, "tokens listed": kl_top}),
                Figure("same first token", self.agreement.top1, None, True, pair),
                Figure("flips", self.agreement.flips, None, False, pair),
            ]
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
    """Return the loss of ``model`` on ``text``; see `TextOptions`.

    ``teacher``: a second model to compare with; it is scored on the same token ids, so it must share the vocabulary.

    Raises: InputError when a model or text cannot be read, or the window is longer than a model's context.
    """
    options = TextOptions(text, window, stride, limit_tokens)
    documents = evaluation_documents(text)  # before the model: a wrong file name should not cost a loading time
    with open_scorer(model, threads, say) as scorer:
        if teacher is None:
            return score_text(scorer, documents, options, None, on_window)
        with open_scorer(teacher, threads, say) as other:
            return score_text(scorer, documents, options, other, on_window)


def score_text(
    scorer: Scorer,
    documents: Sequence[Document],
    options: TextOptions,
    teacher: Scorer | None = None,
    on_window: OnWindow | None = None,
) -> PerplexityReport:
    """Return the loss of a model on documents, and its agreement with a teacher.

    Raises: InputError when the window is longer than a context, or the two tokenizers split the text differently.
    """
    windows = text_windows(scorer, documents, options)
    if teacher is not None:
        check_context(teacher, windows)
        if any(document_ids(teacher, each.text) != document_ids(scorer, each.text) for each in documents):
            raise InputError(f"teacher {teacher.name}: its tokenizer splits the text differently than {scorer.name}'s")
    loss = scored_loss(scorer, windows, on_window)
    report = PerplexityReport(
        scorer.name, scorer.runs_on, loss, text_sha256=text_hash(documents), limit=options.limit_tokens,
        no_ar=scorer.diffusion.no_ar if scorer.diffusion else "",
    )  # fmt: skip
    if teacher is None:
        return report
    theirs = scored_loss(teacher, windows, on_window)
    alike = compare(teacher, scorer, windows, on_window)
    return replace(report, teacher=theirs, agreement=alike, teacher_model=teacher.name)


def text_hash(documents: Sequence[Document]) -> str:
    """Return the sha256 of documents' texts in their order."""
    return hashlib.sha256(b"\0".join(document.text.encode() for document in documents)).hexdigest()


def text_windows(scorer: Scorer, documents: Sequence[Document], options: TextOptions) -> EvaluationText:
    """Return a text in the tokens of a model. Raises: InputError when a window is longer than its context."""
    encode = partial(document_ids, scorer)
    windows = evaluation_text(documents, encode, options.window, options.stride, options.text)
    windows = windows if options.limit_tokens is None else windows.limited(options.limit_tokens)
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
