"""The likelihood of a diffusion model beside its autoregressive one: ``wf eval --likelihood block``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wrinklefree.errors import InputError
from wrinklefree.eval.diffusion import BoundReport, bound
from wrinklefree.eval.loss import LossReport, OnWindow, held_out_loss
from wrinklefree.eval.perplexity import check_context, open_model
from wrinklefree.eval.text import evaluation_documents, evaluation_text


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

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file; ``loss`` and its like are the bound's."""
        return {
            "model": self.model, "runs_on": self.runs_on, "likelihood": "block", "dlm": self.dlm,
            **self.block.to_json(), "ar": self.ar.to_json() if self.ar else None, "no_ar": self.no_ar,
        }  # fmt: skip


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
    with open_model(model, threads) as opened:
        if opened.dlm is None or opened.masked is None:
            raise InputError(f"--likelihood block: {model} was not trained for block diffusion (no dlm marker); use ar")
        windows = evaluation_text(documents, opened.encode, window, None, text)
        windows = windows if limit_tokens is None else windows.limited(limit_tokens)
        check_context(opened, windows)
        found = bound(opened.masked, windows, opened.dlm["block_size"], samples, seed, on_window)
        why = _no_ar(opened.dlm)
        ar = None if why else held_out_loss(opened.logits, windows, on_window)
        return LikelihoodReport(model, opened.runs_on, opened.dlm, found, ar, why)


def _no_ar(dlm: dict[str, Any]) -> str:
    if not dlm["token_shift"]:
        return "without token shift no state predicts the token after it"
    if dlm["clean_half"] != "causal":
        return "its finished blocks were trained to see all of themselves, so it has no next-token distribution"
    return ""
