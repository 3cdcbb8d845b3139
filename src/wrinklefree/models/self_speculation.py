"""Self-speculative decoding in torch: a causal diffusion model proposes tokens at MASK positions and verifies them.

The reference: full causal forwards, no cache. The text ends with a token x whose successor is not known yet. A forward
reads it with the drafts d_1 .. d_k of the forward before and m MASKs behind them. With token shift the row of x gives
the distribution p_1 of the next token, the row of d_i gives p_(i+1). From the left, d_i, which was drawn from q_i, is
accepted with probability

    min(1, p_i(d_i) / q_i(d_i)); at the first rejection a token is drawn from  max(0, p_i - q_i) / sum max(0, p_i - q_i)

and all drafts behind it are forgotten. When all are accepted (also when there were none) the row of d_k, or of x, gives
one more token, and the row of MASK number j proposes the token j + 1 places behind d_k: the drafts of the next forward.
The text is distributed as if it were decoded token by token, whatever the proposals are; greedily it is the same text.

p and q are what the request's filters leave of the softmax. Those of p_i know the text before it; those of a proposal
know the proposals before it too. The forward over the prompt proposes nothing.

Sources: arXiv 2211.17192, section 2.3 and appendix A.1; arXiv 2302.01318, algorithm 2 and theorem 1 (acceptance and
residual); arXiv 2604.11035 (drafts of the MASK rows of the verifying forward).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wrinklefree.artifact.diffusion_marker import AttentionRule, DiffusionMarker
from wrinklefree.errors import InputError
from wrinklefree.models.block_decoding import banned_tokens

# (logits float32 [V] without what is never chosen, tokens before) -> probabilities float64 [V].
Distribution = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class Speculated:
    """``ids``: the new tokens, up to the end token (included) or the limit. ``forwards``: that of the prompt included.

    ``proposed``: drafts that a forward verified, ``accepted`` ones of them.
    """

    ids: list[int]
    forwards: int
    proposed: int
    accepted: int


def greedy(logits: Tensor, history: Sequence[int]) -> Tensor:
    """Return all probability for the best token, the lower of equal ones."""
    probabilities = torch.zeros_like(logits, dtype=torch.float64)
    probabilities[logits.argmax()] = 1.0
    return probabilities


def acceptance(p: Tensor, q: Tensor, token: int) -> float:
    """Return the probability with which a draft that was drawn from ``q`` [V] is accepted under ``p`` [V]."""
    return min(1.0, float(p[token] / q[token]))


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Return the distribution [V] of the token in place of a rejected draft. Where q is p, p: nothing is rejected."""
    left = (p - q).clamp(min=0.0)
    return p if float(left.sum()) == 0.0 else left / left.sum()


@torch.no_grad()
def decode_speculatively(
    model: nn.Module,
    marker: DiffusionMarker,
    prompt: Sequence[int],
    max_new_tokens: int,
    window: int = 4,
    eos_ids: Sequence[int] = (),
    distribution: Distribution = greedy,
    uniform: Callable[[], float] = lambda: 0.0,
    context: int | None = None,
) -> Speculated:
    """Return what ``model`` writes after ``prompt``, with ``window`` MASKs in a forward.

    ``uniform`` gives random numbers in [0, 1): one for each draw, and one for each draft to verify.

    Raises: InputError for a model whose attention is not causal throughout or which does not predict the next token, an
    empty prompt, no token to write, or a window below 1.
    """
    if marker.rule != AttentionRule("causal", "causal") or not marker.token_shift:
        raise InputError(
            f"speculative decoding: found a model of variant {marker.variant}, clean_half {marker.clean_half} and "
            f"token_shift {str(marker.token_shift).lower()}; it needs causal, causal and true"
        )
    if not prompt or max_new_tokens < 1 or window < 1:
        raise InputError(
            f"speculative decoding: found a prompt of {len(prompt)} tokens, max_new_tokens {max_new_tokens} and window "
            f"{window}; needed is at least 1 of each"
        )
    own: int = model.config.max_position_embeddings  # type: ignore[union-attr, assignment]
    room = min(context or own, own)
    if len(prompt) > room:
        raise InputError(f"speculative decoding: found a prompt of {len(prompt)} tokens, the context has {room}")
    run = _Run(model, marker, list(prompt), distribution, uniform, banned_tokens(model, marker, eos_ids))
    # The last token that is wanted needs no position of its own: nothing is predicted from it.
    limit = min(len(prompt) + max_new_tokens, room + 1)
    begun = False
    while len(run.ids) < limit:
        places = limit - 1 - len(run.ids) - len(run.drafts) - 1  # a proposal must be read to be verified
        run.forward(min(window, max(0, places)) if begun else 0)
        begun = True
        found = next((i for i, token in enumerate(run.ids[len(prompt) :]) if token in eos_ids), None)
        if found is not None:
            run.ids = run.ids[: len(prompt) + found + 1]
            break
    return Speculated(run.ids[len(prompt) : limit], run.forwards, run.proposed, run.accepted)


class _Run:
    """The text so far, the drafts behind it with the distributions they were drawn from, and the counts."""

    def __init__(
        self,
        model: nn.Module,
        marker: DiffusionMarker,
        ids: list[int],
        distribution: Distribution,
        uniform: Callable[[], float],
        banned: list[int],
    ) -> None:
        self._model, self._mask, self._banned = model, marker.mask_token_id, banned
        self._distribution, self._uniform = distribution, uniform
        self.ids = ids
        self.drafts: list[tuple[int, Tensor]] = []
        self.forwards = self.proposed = self.accepted = 0

    def forward(self, masks: int) -> None:
        """Compute the text, the drafts and ``masks`` MASKs; verify, take one more token, propose."""
        drafts, self.drafts = self.drafts, []
        read = [*self.ids, *(token for token, _ in drafts), *[self._mask] * masks]
        device = next(self._model.parameters()).device
        logits = self._model(input_ids=torch.tensor([read], device=device), use_cache=False).logits[0].float().cpu()
        logits[:, self._banned] = float("-inf")
        rows = logits[len(self.ids) - 1 :]  # of the last token, the drafts, the MASKs
        self.forwards += 1
        self.proposed += len(drafts)
        for row, (token, q) in zip(rows, drafts, strict=False):
            p = self._distribution(row, self.ids)
            if self._uniform() >= acceptance(p, q, token):
                self.ids.append(self._draw(residual(p, q)))
                return
            self.ids.append(token)
            self.accepted += 1
        self.ids.append(self._draw(self._distribution(rows[len(drafts)], self.ids)))
        for row in rows[len(drafts) + 1 :]:
            q = self._distribution(row, [*self.ids, *(token for token, _ in self.drafts)])
            self.drafts.append((self._draw(q), q))

    def _draw(self, probabilities: Tensor) -> int:
        upto = probabilities.cumsum(dim=0)
        found = int(torch.searchsorted(upto, self._uniform() * float(upto[-1]), right=True))
        return min(found, int(probabilities.nonzero()[-1]))
