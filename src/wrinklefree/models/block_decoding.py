"""Block-diffusion decoding in torch, as plainly as it can be said: the reference, not the fast way.

The text is decided block by block. The current block holds what is known of it and MASK for the rest; one forward of
everything so far gives a distribution for each MASK; the confident ones are decided, and so on until none is left. The
attention is that of training (`models.block_attention`): finished blocks are the clean half, the current one is the
noised half. Nothing is cached: each forward computes all positions anew.

MASK itself is never chosen. Choices are greedy.

Source: arXiv 2509.26328, section 3.3 (confidence threshold). Differs: no cache, no sub-blocks; with token shift the
first token of a block may be decided together with others, where the paper decides it alone, from the forward that
finishes the block before. It sees the same states here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wrinklefree.data.batch import IGNORE_INDEX
from wrinklefree.errors import InputError
from wrinklefree.models.block_attention import BlockBatch
from wrinklefree.models.forward import forward, soft_capped
from wrinklefree.models.mask_token import DiffusionMarker


@dataclass(frozen=True)
class Decoded:
    """``ids``: the new tokens, up to the end token (included) or the limit. ``forwards`` of the model it took."""

    ids: list[int]
    forwards: int


@torch.no_grad()
def decode_blocks(
    model: nn.Module,
    marker: DiffusionMarker,
    prompt: Sequence[int],
    max_new_tokens: int,
    threshold: float = 0.9,
    tokens_per_forward: int | None = None,
    eos_ids: Sequence[int] = (),
) -> Decoded:
    """Return what ``model`` writes after ``prompt``.

    In each forward the MASKs whose best token is more probable than ``threshold`` are decided, at least the most
    probable one; at threshold 1 exactly that one. ``tokens_per_forward`` decides so many instead.

    Raises: InputError for an empty prompt, one with MASK in it, or settings out of range.
    """
    if not prompt or max_new_tokens < 1 or not 0.0 <= threshold <= 1.0:
        raise InputError(
            f"block decoding: found a prompt of {len(prompt)} tokens, max_new_tokens {max_new_tokens} and threshold "
            f"{threshold}; needed are at least 1, at least 1, and 0 to 1"
        )
    if marker.mask_token_id in prompt:
        raise InputError(f"block decoding: the prompt holds the MASK token {marker.mask_token_id}, which no text has")
    if tokens_per_forward is not None and tokens_per_forward < 1:
        raise InputError(f"block decoding: tokens_per_forward is {tokens_per_forward}, it must be at least 1")
    ids, limit, forwards = list(prompt), len(prompt) + max_new_tokens, 0
    while len(ids) < limit:
        start, end = _block(marker, len(ids), limit)
        ids += [marker.mask_token_id] * (end - len(ids))
        while waiting := [i for i in range(start, min(end, limit)) if ids[i] == marker.mask_token_id]:
            best, confidence = _best(model, marker, decoding_batch(model, ids, marker, start), waiting)
            forwards += 1
            for place in _chosen(confidence, threshold, tokens_per_forward):
                ids[waiting[place]] = int(best[place])
        ids = ids[: min(end, limit)]
        ends = [i for i in range(len(prompt), len(ids)) if ids[i] in eos_ids]
        if ends:
            ids = ids[: ends[0] + 1]
            break
    return Decoded(ids[len(prompt) :], forwards)


def _block(marker: DiffusionMarker, known: int, limit: int) -> tuple[int, int]:
    """Return first position and end of the block in which position ``known`` lies."""
    size = marker.block_size
    return (0, limit) if size is None else (known // size * size, (known // size + 1) * size)


def decoding_batch(model: nn.Module, ids: Sequence[int], marker: DiffusionMarker, start: int) -> BlockBatch:
    """Return one row of ``ids``, finished up to ``start``, where the current block begins."""
    tokens = torch.tensor([list(ids)], device=next(model.parameters()).device)
    positions = torch.arange(len(ids), device=tokens.device)[None]
    return BlockBatch(
        input_ids=tokens,
        labels=torch.full_like(tokens, IGNORE_INDEX),
        position_ids=positions,
        document_ids=torch.zeros_like(tokens, dtype=torch.int32),
        block_ids=(positions // (marker.block_size or len(ids))).to(torch.int32),
        noised=positions >= start,
        rule=marker.rule,
    )


def _best(model: nn.Module, marker: DiffusionMarker, batch: BlockBatch, waiting: list[int]) -> tuple[Tensor, Tensor]:
    """Return the most probable token at each waiting position, and its probability."""
    output = forward(model, batch)
    states = output.final[0, [i - 1 if marker.token_shift else i for i in waiting]]
    logits = soft_capped(output.head(states).float(), output.softcap)
    logits[:, marker.mask_token_id] = float("-inf")
    confidence, best = logits.softmax(dim=-1).max(dim=-1)
    return best, confidence


def _chosen(confidence: Tensor, threshold: float, tokens_per_forward: int | None) -> list[int]:
    order = confidence.argsort(descending=True, stable=True).tolist()
    if tokens_per_forward is not None:
        return order[:tokens_per_forward]
    return order[: max(1, int((confidence > threshold).sum()))]
