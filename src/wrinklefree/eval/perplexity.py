"""Perplexity of any model on any text: what `wf eval --perplexity` measures.

MODEL may be a packed directory (run by the engine, without torch), a converted checkpoint, a Hugging Face directory or
id, or a GGUF file. All go through `eval.loss`, so their figures compare.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrinklefree.artifact.manifest import model_format, read_config
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.errors import InputError, MissingDependencyError
from wrinklefree.eval.loss import (
    AgreementReport,
    LogitsFunction,
    LossReport,
    OnWindow,
    agreement,
    engine_logits,
    held_out_loss,
    torch_logits,
)
from wrinklefree.eval.text import EvaluationText, evaluation_documents, evaluation_text


@dataclass(frozen=True)
class OpenModel:
    """A model ready to be measured. ``runs_on``: "engine" or "torch". ``context``: most tokens of a window."""

    name: str
    runs_on: str
    logits: LogitsFunction
    encode: Callable[[str], list[int]]
    context: int | None


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
) -> PerplexityReport:
    """Return the loss of ``model`` on ``text``: a file, a directory, or ``python-docs`` (its held-out topics).

    ``limit_tokens``: score about so many, spread over the text. ``teacher``: a second model to compare with; it is
    scored on the same token ids, so it must share the vocabulary.

    Raises: InputError when a model or text cannot be read, or the window is longer than a model's context.
    """
    documents = evaluation_documents(text)  # before the model: a wrong file name should not cost a loading time
    with open_model(model, threads) as opened:
        windows = evaluation_text(documents, opened.encode, window, stride, text)
        windows = windows if limit_tokens is None else windows.limited(limit_tokens)
        _check_context(opened, windows)
        loss = held_out_loss(opened.logits, windows, on_window)
        if teacher is None:
            return PerplexityReport(model, opened.runs_on, loss)
        with open_model(teacher, threads) as other:
            _check_context(other, windows)
            if any(other.encode(document.text) != opened.encode(document.text) for document in documents):
                raise InputError(f"teacher {teacher}: its tokenizer splits the text differently than {model}'s")
            return PerplexityReport(
                model,
                opened.runs_on,
                loss,
                held_out_loss(other.logits, windows, on_window),
                agreement(other.logits, opened.logits, windows, on_window),
            )


@contextmanager
def open_model(source: str, threads: int | None = None) -> Iterator[OpenModel]:
    """Give a model of any kind, ternary ones at full quantisation strength while the block runs.

    Raises: InputError when nothing is there or it cannot be read, MissingDependencyError when it needs torch.
    """
    if Path(source).is_dir() and model_format(read_config(source)) == "packed":
        yield _open_packed(source, threads)
        return
    try:
        import torch

        from wrinklefree.models.io import load_checkpoint, load_source
        from wrinklefree.models.pooling import refuse_classifier
        from wrinklefree.quant.bitlinear import full_strength
    except ImportError as error:
        raise MissingDependencyError(
            f"{source}: evaluating a model that is not packed needs torch: pip install 'wrinklefree[eval]'"
        ) from error
    if threads is not None:
        torch.set_num_threads(threads)
    converted = Path(source).is_dir() and model_format(read_config(source)) == "checkpoint"
    model, tokenizer = load_checkpoint(source)[:2] if converted else load_source(source)
    refuse_classifier(model, source, "training writes its held-out accuracy to held_out.json")
    model.eval()
    context = getattr(model.config, "max_position_embeddings", None)
    with full_strength(model):
        yield OpenModel(source, "torch", torch_logits(model), hugging_face_encoder(tokenizer), context)


def _open_packed(source: str, threads: int | None) -> OpenModel:
    from wrinklefree.engine import Engine

    engine = Engine.load(source, threads=threads)
    return OpenModel(source, "engine", engine_logits(engine), engine.tokenizer.encode, engine.context)


def hugging_face_encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """Return the encoder of a Hugging Face tokenizer's own files, read as the engine reads them."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        return Tokenizer.load(directory).encode


def _check_context(model: OpenModel, text: EvaluationText) -> None:
    longest = max(len(window.tokens) for window in text.windows)
    if model.context is not None and longest > model.context:
        raise InputError(f"window {text.window}: {model.name} has a context of {model.context} tokens; choose less")
