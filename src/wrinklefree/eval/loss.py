"""Held-out loss and agreement of two models, from logits alone: one NumPy statement for torch models and the engine.

A model is a function from the tokens of a window, int64 [T], to its logits, float32 [T, V] (row i predicts token
i + 1), whole or in consecutive pieces. Torch is not needed here; `torch_logits` adapts a torch model.

Shapes: T tokens of a window, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.errors import InputError
from wrinklefree.eval.text import EvaluationText, Window

if TYPE_CHECKING:
    from torch import Tensor

    from wrinklefree.engine import Engine
    from wrinklefree.eval.scorer import Scorer

Logits = NDArray[np.float32]
LogitsFunction = Callable[[NDArray[np.int64]], Logits | Iterable[Logits]]
OnWindow = Callable[[int, int], None]

# Rows handled at once: the float64 copies of 32 rows of a vocabulary of 150,000 take 40 MB.
_ROWS = 32


@dataclass(frozen=True)
class LossReport:
    """``loss`` in nats per scored token, ``perplexity`` = exp(loss).

    ``bits_per_byte``: loss / ln 2 times the tokens per UTF-8 byte of the whole text, so that models with different
    tokenizers compare; None where the bytes are not known. ``tokens``: how many were scored, in ``windows`` windows
    of ``window`` tokens, ``stride`` apart (see `eval.text`). ``standard_error``: of ``loss``, if the windows were drawn
    at random from a large text; None for a single one.
    """

    text: str
    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    windows: int
    window: int
    stride: int
    standard_error: float | None = None

    def line(self) -> str:
        """Return the report in words."""
        per_byte = f", {self.bits_per_byte:.4f} bits a byte" if self.bits_per_byte is not None else ""
        return (
            f"loss {self.loss:.4f} nats, perplexity {self.perplexity:,.2f}{per_byte} on {self.tokens:,} tokens of "
            f"{self.text}, windows of {self.window} every {self.stride}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class AgreementReport:
    """How alike two models predict, over the same scored positions.

    ``kl``: mean KL(teacher || student) in nats. ``top1``: share of positions where both rank the same token first.
    ``flips``: share where one of them predicts the text's token and the other does not (arXiv 2407.09141), which an
    equal accuracy can hide. ``teacher_accuracy``, ``student_accuracy``: shares where the text's token is first.
    ``kl_top``: None where ``kl`` is exact; else it is a lower bound from so many tokens at each position and the rest.
    """

    kl: float
    top1: float
    flips: float
    teacher_accuracy: float
    student_accuracy: float
    tokens: int
    kl_top: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def held_out_loss(logits: LogitsFunction, text: EvaluationText, on_window: OnWindow | None = None) -> LossReport:
    """Return the loss of a model over a text. ``on_window(done, of)`` is called after each window.

    Raises: InputError when the logits have the wrong shape; ArithmeticError when they are not finite.
    """
    each = (sum(float(token_losses(*part).sum()) for part in _scored(logits, window)) for window in text.windows)
    return _report(text, each, on_window)


def scored_loss(scorer: Scorer, text: EvaluationText, on_window: OnWindow | None = None) -> LossReport:
    """Return what `held_out_loss` does, of a model behind a `Scorer`: windows may be computed together.

    Raises: InputError for a window longer than the model's context, ArithmeticError when a loss is not finite.
    """
    from wrinklefree.eval.scorer import Request

    requests = [Request(window.tokens, window.scored_from) for window in text.windows]
    return _report(text, (float(scores.losses.sum()) for scores in scorer.score(requests)), on_window)


def agreement(
    teacher: LogitsFunction, student: LogitsFunction, text: EvaluationText, on_window: OnWindow | None = None
) -> AgreementReport:
    """Return how alike two models predict the scored tokens of a text.

    Raises: InputError when the vocabularies differ, ArithmeticError when logits are not finite.
    """
    sums = np.zeros(5)
    tokens = 0
    for number, window in enumerate(text.windows, start=1):
        theirs, ours = window_logits(teacher, window), window_logits(student, window)
        if theirs.shape != ours.shape:
            raise InputError(
                f"agreement: the teacher has {theirs.shape[1]} logits per token, the student {ours.shape[1]}; "
                "only models of one vocabulary can be compared"
            )
        targets = window.tokens[window.scored_from :]
        for at in range(0, len(targets), _ROWS):
            sums += _compare(theirs[at : at + _ROWS], ours[at : at + _ROWS], targets[at : at + _ROWS])
        tokens += len(targets)
        if not np.isfinite(sums).all():
            raise ArithmeticError(f"{text.name}, window {number} of {len(text.windows)}: the logits are not finite")
        if on_window:
            on_window(number, len(text.windows))
    kl, top1, flips, teacher_accuracy, student_accuracy = (float(value) / tokens for value in sums)
    return AgreementReport(kl, top1, flips, teacher_accuracy, student_accuracy, tokens)


def token_losses(rows: Logits, targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return -log softmax(row)[target] for ``rows`` [T, V] and ``targets`` [T], in nats, computed in float64."""
    found = [
        log_softmax(rows[at : at + _ROWS])[np.arange(len(part)), part]
        for at, part in ((at, targets[at : at + _ROWS]) for at in range(0, len(targets), _ROWS))
    ]
    return -np.concatenate(found) if found else np.zeros(0)


def torch_logits(model: Callable[[Tensor], Any], device: str = "cpu") -> LogitsFunction:
    """Return a torch model as a logits function.

    ``model`` takes ``input_ids`` int64 [1, T] and returns logits [1, T, V] or an object that has them as ``.logits``,
    as Hugging Face models do. Call ``model.eval()`` before; a ternary model belongs in `full_strength`.
    """
    import torch

    def logits(tokens: NDArray[np.int64]) -> Logits:
        with torch.inference_mode():
            out = model(torch.from_numpy(tokens[None]).to(device))
            found: Logits = getattr(out, "logits", out)[0].float().cpu().numpy()
        return found

    return logits


def engine_logits(engine: Engine) -> LogitsFunction:
    """Return the native engine as a logits function, every window from an empty cache."""

    def logits(tokens: NDArray[np.int64]) -> Iterator[Logits]:
        return (piece for _, piece in engine.logit_chunks(tokens))

    return logits


def without_tokens(logits: LogitsFunction, never: Collection[int]) -> LogitsFunction:
    """Return ``logits`` with the tokens ``never`` at -inf; a vocabulary that ends before one is widened with -inf."""
    columns = sorted(never)

    def cut(piece: Logits) -> Logits:
        width = max(piece.shape[1], columns[-1] + 1)
        found = np.full((len(piece), width), -np.inf, np.float32)
        found[:, : piece.shape[1]] = piece
        found[:, columns] = -np.inf
        return found

    def function(tokens: NDArray[np.int64]) -> Logits | Iterable[Logits]:
        out = logits(tokens)
        return cut(out) if isinstance(out, np.ndarray) else map(cut, out)

    return function if columns else logits


def _scored(logits: LogitsFunction, window: Window) -> Iterator[tuple[Logits, NDArray[np.int64]]]:
    """Yield (logits, the tokens they predict) for the scored part of a window, without rows that predict nothing."""
    first, last = window.scored_from - 1, len(window.tokens) - 1
    at = 0
    for piece in _pieces(logits, window):
        begin, end = max(first, at), min(last, at + len(piece))
        if begin < end:
            yield piece[begin - at : end - at], window.tokens[begin + 1 : end + 1]
        at += len(piece)
    if at != len(window.tokens):
        raise InputError(f"logits: found {at} rows for {len(window.tokens)} tokens")


def window_logits(logits: LogitsFunction, window: Window) -> Logits:
    """Return the rows of a model that predict a window's scored tokens, float32 [scored, V].

    Raises: InputError when the logits have the wrong shape.
    """
    # Copies, because a model may reuse the memory of a piece for the next one.
    return np.concatenate([rows.copy() for rows, _ in _scored(logits, window)])


def _pieces(logits: LogitsFunction, window: Window) -> Iterator[Logits]:
    out = logits(window.tokens)
    largest = int(window.tokens.max())
    for piece in (out,) if isinstance(out, np.ndarray) else out:
        if piece.ndim != 2 or piece.shape[1] <= largest:
            raise InputError(f"logits: found shape {piece.shape}, needed is [T, V] with V above token {largest}")
        yield piece


def log_softmax(rows: Logits) -> NDArray[np.float64]:
    """Return the log-probabilities of ``rows`` [T, V], in nats, computed in float64."""
    wide = rows.astype(np.float64)
    with np.errstate(invalid="ignore"):  # what is not finite is found, and named, where the sums are
        wide -= wide.max(axis=1, keepdims=True)
        wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def _compare(theirs: Logits, ours: Logits, targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sums over rows: KL, same first token, flips, teacher right, student right."""
    p, q = log_softmax(theirs), log_softmax(ours)
    # A token the teacher excludes (probability 0, log -inf) adds nothing; without the mask it would add 0 * inf.
    apart = np.subtract(p, q, out=np.zeros_like(p), where=~np.isneginf(p))
    kl = (np.exp(p) * apart).sum()
    first, second = theirs.argmax(axis=1), ours.argmax(axis=1)
    right, also = first == targets, second == targets
    return np.array([kl, (first == second).sum(), (right != also).sum(), right.sum(), also.sum()], np.float64)


def _report(text: EvaluationText, losses: Iterable[float], on_window: OnWindow | None) -> LossReport:
    """Return the report of the losses in nats of each window's scored tokens together."""
    sums: list[float] = []
    for number, found in enumerate(losses, start=1):
        sums.append(found)
        if not math.isfinite(found):
            raise ArithmeticError(f"{text.name}, window {number} of {len(text.windows)}: the logits are not finite")
        if on_window:
            on_window(number, len(text.windows))
    loss = sum(sums) / text.num_scored
    per_byte = loss / math.log(2) * text.num_tokens / text.num_bytes if text.num_bytes else None
    return LossReport(
        text.name, loss, _exp(loss), per_byte, text.num_scored, len(sums), text.window, text.stride,
        ratio_error(sums, [window.num_scored for window in text.windows]),
    )  # fmt: skip


def ratio_error(sums: Sequence[float], counts: Sequence[int]) -> float | None:
    """Return the standard error of sum(sums) / sum(counts), whose parts differ in size; None for a single part.

    Source: Cochran, Sampling Techniques (1977), section 2.11 (the ratio estimate).
    """
    number, tokens = len(sums), sum(counts)
    if number < 2:
        return None
    apart = np.asarray(sums) - sum(sums) / tokens * np.asarray(counts)
    return math.sqrt(number / (number - 1) * float(apart @ apart)) / tokens


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700.0 else math.inf
