"""Likelihood of a block-diffusion model: an upper bound of its loss, estimated without bias from random masks.

A document is cut into blocks as in training. Of a block with L predicted tokens (all but a document's first),

    -log p(block | blocks before) <= E_l E_m (L / l) sum_{i in m} -log p(x_i | the block with m masked, blocks before)

with l uniform on 1 to L and m a uniformly drawn set of exactly l tokens. The right side is the expected loss of
decoding the block's tokens one at a time in random order, so it is the negative log-likelihood of a proper
distribution over texts, and comparable with an autoregressive loss in nats per token. Drawing the number of masked
tokens, instead of masking each with probability t, has the same expectation and a smaller variance.

The masks follow from the seed, the window's and the sample's number alone: two models with blocks of one size are
measured on the same masks.

Sources: arXiv 2502.09992, equation 6 (L / l, exact numbers of masks); arXiv 2503.09573, equation 8 (sum over blocks).

Shapes: T tokens of a window, K blocks of a window, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.data.permutation import key, mix
from wrinklefree.errors import InputError
from wrinklefree.eval.text import EvaluationText

Ids = NDArray[np.int64]
Masks = NDArray[np.bool_]
Losses = NDArray[np.float64]
MaskedLosses = Callable[[Ids, Masks], Losses]
"""From the tokens of a window, int64 [T], and masks, bool [S, T], to the loss in nats of each masked token, float64
[S, T], zero elsewhere: each block with its own masked tokens behind MASK, and the blocks before it clean."""
OnWindow = Callable[[int, int], None]

_PURPOSE = 0x626C6B6C  # keeps these numbers apart from those of training's masks


@dataclass(frozen=True)
class BoundReport:
    """``loss``: the bound in nats per predicted token; ``perplexity`` = exp(loss); ``bits_per_byte`` as `LossReport`'s.

    ``standard_error``: of ``loss``, from the drawing of masks alone (the text is taken as it is). ``block_size`` None:
    a window is one block. ``seed`` and ``samples`` (masks of every block) repeat it.
    """

    text: str
    loss: float
    standard_error: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    windows: int
    window: int
    block_size: int | None
    samples: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bound(
    losses: MaskedLosses,
    text: EvaluationText,
    block_size: int | None,
    samples: int = 8,
    seed: int = 0,
    on_window: OnWindow | None = None,
) -> BoundReport:
    """Return the bound over all windows of a text, each a document of its own.

    Raises: InputError for overlapping windows, a block size below 2 or fewer than 2 samples; ArithmeticError when the
    model's logits are not finite.
    """
    _check(text, block_size, samples)
    total, variance, tokens = 0.0, 0.0, 0
    for number, window in enumerate(text.windows, start=1):
        blocks = block_numbers(len(window.tokens), block_size)
        masks = np.stack([draw(blocks, seed, number - 1, sample) for sample in range(samples)])
        values = block_values(losses(window.tokens, masks), masks, blocks)
        if not np.isfinite(values).all():
            raise ArithmeticError(f"{text.name}, window {number} of {len(text.windows)}: a masked token's loss is "
                                  "not finite")  # fmt: skip
        total += float(values.mean(axis=0).sum())
        variance += float(values.var(axis=0, ddof=1).sum()) / samples
        tokens += window.num_scored
        if on_window:
            on_window(number, len(text.windows))
    loss = total / tokens
    per_byte = loss / math.log(2) * text.num_tokens / text.num_bytes if text.num_bytes else None
    return BoundReport(
        text.name, loss, math.sqrt(variance) / tokens, math.exp(min(loss, 700.0)), per_byte, tokens,
        len(text.windows), text.window, block_size, samples, seed,
    )  # fmt: skip


def block_numbers(length: int, block_size: int | None) -> Ids:
    """Return the number of the block of each of ``length`` tokens, int64 [T]; -1 for the first, which is no target."""
    numbers = np.arange(length) // (block_size or length)
    numbers[0] = -1
    return numbers


def draw(blocks: Ids, seed: int, window: int, sample: int) -> Masks:
    """Return one mask bool [T]: of each block with L predicted tokens exactly l, l uniform on 1 to L."""
    length, most = len(blocks), int(blocks.max()) + 1
    counters = np.arange(length + most, dtype=np.uint64) + np.uint64(key(seed, _PURPOSE, window, sample) >> 1)
    drawn = (mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    masked = np.zeros(length, bool)
    for block in range(most):
        members = np.flatnonzero(blocks == block)
        if len(members):
            number = 1 + int(drawn[length + block] * len(members))
            masked[members[np.argsort(drawn[members], kind="stable")[:number]]] = True
    return masked


def block_values(losses: Losses, masks: Masks, blocks: Ids) -> Losses:
    """Return (L / l) times the sum of the masked tokens' losses for each sample and block, float64 [S, K]."""
    values = []
    for block in range(int(blocks.max()) + 1):
        members = blocks == block
        number = masks[:, members].sum(axis=1)
        sums = np.where(masks[:, members], losses[:, members], 0.0).sum(axis=1)
        values.append(sums * members.sum() / np.maximum(number, 1))
    return np.stack(values, axis=1)


def _check(text: EvaluationText, block_size: int | None, samples: int) -> None:
    if text.stride != text.window:
        raise InputError(f"stride {text.stride}: the bound needs windows that do not overlap; leave the stride out")
    if block_size is not None and block_size < 2:
        raise InputError(f"block size: found {block_size}, at least 2 tokens are needed")
    if samples < 2:
        raise InputError(f"samples: found {samples}, at least 2 are needed (the standard error comes from them)")
