"""Perplexity of any model on any text: what `wf eval --perplexity` measures.

MODEL may be a packed directory (run by the engine, without torch), a converted checkpoint, a Hugging Face directory or
id, or a GGUF file. All go through `eval.loss`, so their figures compare.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.artifact.manifest import model_format, read_config
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.engine.held import runs
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
    without_tokens,
)
from wrinklefree.eval.text import EvaluationText, evaluation_documents, evaluation_text

if TYPE_CHECKING:
    from wrinklefree.eval.diffusion import MaskedLosses


@dataclass(frozen=True)
class OpenModel:
    """A model ready to be measured. ``runs_on``: "engine" or "torch". ``context``: most tokens of a window.

    Of a diffusion model, ``dlm`` is its marker as it stands in config.json, ``masked`` gives the losses of masked
    tokens, and ``never`` are the tokens it never writes (MASK; padding, unless it is an end token).
    """

    name: str
    runs_on: str
    logits: LogitsFunction
    encode: Callable[[str], list[int]]
    context: int | None
    dlm: dict[str, Any] | None = None
    masked: MaskedLosses | None = None
    never: tuple[int, ...] = ()


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
        check_context(opened, windows)
        loss = held_out_loss(opened.logits, windows, on_window)
        if teacher is None:
            return PerplexityReport(model, opened.runs_on, loss)
        with open_model(teacher, threads) as other:
            check_context(other, windows)
            if any(other.encode(document.text) != opened.encode(document.text) for document in documents):
                raise InputError(f"teacher {teacher}: its tokenizer splits the text differently than {model}'s")
            theirs = held_out_loss(other.logits, windows, on_window)
            # Over the tokens that the model can write: its MASK may even lie outside the teacher's vocabulary.
            comparable = without_tokens(other.logits, opened.never)
            alike = agreement(comparable, opened.logits, windows, on_window)
            return PerplexityReport(model, opened.runs_on, loss, theirs, alike)


@contextmanager
def open_model(source: str, threads: int | None = None) -> Iterator[OpenModel]:
    """Give a model of any kind, ternary ones at full quantisation strength while the block runs.

    Raises: InputError when nothing is there or it cannot be read, MissingDependencyError when it needs torch.
    """
    if runs(source):
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
    dlm = None
    if converted:
        model, tokenizer, info = load_checkpoint(source)
        dlm = info.dlm
    else:
        model, tokenizer = load_source(source)
    refuse_classifier(model, source, "training writes its held-out accuracy to held_out.json")
    model.eval()
    context = getattr(model.config, "max_position_embeddings", None)
    with full_strength(model):
        encode = hugging_face_encoder(tokenizer)
        if dlm is None:
            yield OpenModel(source, "torch", torch_logits(model), encode, context)
        else:
            yield _open_diffusion(
                OpenModel(source, "torch", torch_logits(model), encode, context), model, tokenizer, dlm
            )


def _open_diffusion(plain: OpenModel, model: Any, tokenizer: Any, dlm: dict[str, Any]) -> OpenModel:
    from wrinklefree.eval.masked_losses import torch_masked_losses

    marker = DiffusionMarker.of(dlm, plain.name)
    ends = model.generation_config.eos_token_id
    written = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id}
    pad = tokenizer.pad_token_id
    never = (marker.mask_token_id, *([] if pad is None or pad in written or pad == marker.mask_token_id else [pad]))
    masked = torch_masked_losses(model, marker, never)
    return replace(plain, logits=without_tokens(plain.logits, never), dlm=dlm, masked=masked, never=never)


def _open_packed(source: str, threads: int | None) -> OpenModel:
    from wrinklefree.engine import Engine

    engine = Engine.load(source, threads=threads)
    opened = OpenModel(source, "engine", engine_logits(engine), engine.tokenizer.encode, engine.context)
    dlm = (engine.config.get("wrinklefree") or {}).get("dlm")
    if dlm is None:
        return opened
    from wrinklefree.eval.masked_engine import engine_masked_losses

    marker = DiffusionMarker.of(dlm, source)
    return replace(opened, dlm=dlm, masked=engine_masked_losses(engine, marker), never=engine.banned_tokens)


def hugging_face_encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """Return the encoder of a Hugging Face tokenizer's own files, read as the engine reads them."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        return Tokenizer.load(directory).encode


def check_context(model: OpenModel, text: EvaluationText) -> None:
    """Raise InputError when a window is longer than the model's context."""
    longest = max(len(window.tokens) for window in text.windows)
    if model.context is not None and longest > model.context:
        raise InputError(f"window {text.window}: {model.name} has a context of {model.context} tokens; choose less")
