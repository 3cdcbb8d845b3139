"""The likelihood of a diffusion model beside its autoregressive one: ``wf eval --likelihood block``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wrinklefree.data.document import Document
from wrinklefree.errors import InputError
from wrinklefree.eval.diffusion import BoundReport, bound
from wrinklefree.eval.loss import LossReport, OnWindow, scored_loss
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.perplexity import TextOptions, text_hash, text_windows
from wrinklefree.eval.result import Figure
from wrinklefree.eval.scorer import Scorer
from wrinklefree.eval.text import evaluation_documents


@dataclass(frozen=True)
class LikelihoodReport:
    """``block``: the bound of decoding by blocks. ``ar``: the exact loss token by token, where the model has one.

    ``no_ar``: why it has none, or ''. ``dlm``: the model's marker.
    """

    model: str
    runs_on: str
    dlm: dict[str, Any]
    block: BoundReport
    ar: LossReport | None
    no_ar: str
    text_sha256: str
    limit: int | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file; ``loss`` and its like are the bound's."""
        return {
            "model": self.model, "runs_on": self.runs_on, "likelihood": "block", "dlm": self.dlm,
            **self.block.to_json(), "ar": self.ar.to_json() if self.ar else None, "no_ar": self.no_ar,
            "text_sha256": self.text_sha256, "limit": self.limit,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        found = self.block
        size = f"blocks of {found.block_size}" if found.block_size else "whole windows"
        per_byte = f", {found.bits_per_byte:.4f} bits a byte" if found.bits_per_byte is not None else ""
        return [
            f"{self.model} ({self.runs_on}), {size}: loss at most {found.loss:.4f} ± {found.standard_error:.4f} nats, "
            f"perplexity {found.perplexity:,.2f}{per_byte} on {found.tokens:,} tokens of {found.text}, windows of "
            f"{found.window}, {found.samples} masks a block",
            f"token by token: {self.ar.line() if self.ar else 'none, ' + self.no_ar}",
        ]

    def figures(self) -> list[Figure]:
        """Return the bound as perplexity and bits per byte; the errors are those of drawing masks."""
        found = self.block
        same = {"text": found.text, "sha256": self.text_sha256[:12], "window": found.window, "limit": self.limit,
                "masks": found.samples, "seed": found.seed}  # fmt: skip
        error = found.perplexity * found.standard_error
        figures = [Figure("perplexity by blocks", found.perplexity, error, False, {**same, "tokens": found.tokens})]
        if found.bits_per_byte is not None:
            error = found.bits_per_byte * found.standard_error / found.loss
            figures.append(Figure("bits a byte by blocks", found.bits_per_byte, error, False, same))
        return figures


def block_likelihood(
    model: str,
    text: str,
    *,
    window: int = 512,
    limit_tokens: int | None = None,
    samples: int = 8,
    seed: int = 0,
    threads: int | None = None,
    on_window: OnWindow | None = None,
) -> LikelihoodReport:
    """Return the bound of ``model`` on ``text`` (see `eval.perplexity.perplexity`), by ``samples`` masks a block.

    Raises: InputError when the model or text cannot be read, the model was not trained for diffusion, the window is
    longer than its context, or fewer than 2 samples are asked for.
    """
    documents = evaluation_documents(text)
    with open_scorer(model, threads) as scorer:
        options = TextOptions(text, window, None, limit_tokens)
        return score_by_masks(scorer, documents, options, samples, seed, on_window)


def score_by_masks(
    scorer: Scorer,
    documents: Sequence[Document],
    options: TextOptions,
    samples: int = 8,
    seed: int = 0,
    on_window: OnWindow | None = None,
) -> LikelihoodReport:
    """Return the bound of an open model on documents. Raises: as `block_likelihood`."""
    if scorer.diffusion is None:
        where = "over HTTP no masked token can be scored; give the model" if scorer.runs_on == "server" else (
            "it was not trained for block diffusion (no dlm marker); use ar")  # fmt: skip
        raise InputError(f"--likelihood block: {scorer.name}: {where}")
    windows = text_windows(scorer, documents, options)
    dlm = scorer.diffusion.dlm
    found = bound(scorer.diffusion.masked, windows, dlm["block_size"], samples, seed, on_window)
    why = scorer.diffusion.no_ar
    ar = None if why else scored_loss(scorer, windows, on_window)
    return LikelihoodReport(
        scorer.name, scorer.runs_on, dlm, found, ar, why, text_hash(documents), options.limit_tokens
    )
