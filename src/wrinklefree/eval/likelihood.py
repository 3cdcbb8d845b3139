"""The likelihood of a diffusion model beside its autoregressive one: ``wf eval --likelihood block``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wrinklefree.errors import InputError
from wrinklefree.eval.diffusion import BoundReport, bound
from wrinklefree.eval.loss import LossReport, OnWindow, scored_loss
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.perplexity import text_windows
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
    with open_scorer(model, threads) as scorer:
        if scorer.diffusion is None:
            raise InputError(f"--likelihood block: {model} was not trained for block diffusion (no dlm marker); use ar")
        windows = text_windows(scorer, documents, text, window, None, limit_tokens)
        dlm = scorer.diffusion.dlm
        found = bound(scorer.diffusion.masked, windows, dlm["block_size"], samples, seed, on_window)
        why = _no_ar(dlm)
        ar = None if why else scored_loss(scorer, windows, on_window)
        return LikelihoodReport(model, scorer.runs_on, dlm, found, ar, why)


def _no_ar(dlm: dict[str, Any]) -> str:
    if not dlm["token_shift"]:
        return "without token shift no state predicts the token after it"
    if dlm["clean_half"] != "causal":
        return "its finished blocks were trained to see all of themselves, so it has no next-token distribution"
    return ""
