"""Attention of block diffusion: who sees whom when a sequence lies beside its noised copy.

A row holds up to two halves of the same documents, which are cut into blocks (blocks never cross a document): a noised
half, in which tokens are replaced by MASK, and a clean half. A query sees a key of the same document when

    noised -> noised   the block is the same (``bidirectional``), and also j <= i (``causal``)
    noised -> clean    the key's block is an earlier one
    clean  -> clean    the key's block is the same or earlier (``block_causal``), or j <= i (``causal``)
    clean  -> noised   never

with i, j positions in the document. So a noised block sees what decoding will have: itself and finished blocks.
Without a clean half, and with documents that are one block each, the first line is full bidirectional attention.

Sources: arXiv 2509.26328, appendix A.2 (three-part mask); arXiv 2503.09573 (the same, for training from scratch).

Shapes: B rows, T slots of both halves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wrinklefree.artifact.diffusion_marker import CLEANS as CLEANS
from wrinklefree.artifact.diffusion_marker import NOISED as NOISED
from wrinklefree.artifact.diffusion_marker import AttentionRule as AttentionRule
from wrinklefree.artifact.diffusion_marker import Clean as Clean
from wrinklefree.artifact.diffusion_marker import Noised as Noised
from wrinklefree.data.batch import TokenBatch


@dataclass(frozen=True, kw_only=True)
class BlockBatch(TokenBatch):
    """Rows whose attention is by blocks.

    ``block_ids`` int32 [B, T]: number of the block within its document. ``noised`` bool [B, T]: which half a slot is
    of. Padding is document -1 and block -1; it sees padding of its own half, so that no row of the mask is empty.
    """

    block_ids: Tensor
    noised: Tensor
    rule: AttentionRule = field(default_factory=AttentionRule)


def block_mask(batch: BlockBatch) -> Tensor:
    """Return bool [B, 1, T, T], true where a query (first) sees a key (second)."""

    def pair(values: Tensor) -> tuple[Tensor, Tensor]:
        return values[:, :, None], values[:, None, :]

    document, block, position, noised = map(
        pair, (batch.document_ids, batch.block_ids, batch.position_ids, batch.noised)
    )
    return (_same(document) & _visible(batch.rule, noised, block, position))[:, None]


def flex_block_mask(batch: BlockBatch) -> Any:
    """Return the same mask as a `BlockMask` of flex_attention, which skips the tiles in which nobody sees anybody."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, slots = batch.input_ids.shape
    return create_block_mask(mask_function(batch), rows, None, slots, slots, device=batch.input_ids.device)


def mask_function(batch: BlockBatch) -> Any:
    """Return the mask as a function of (row, head, query, key), the form flex_attention takes."""
    documents, blocks, positions, noised = batch.document_ids, batch.block_ids, batch.position_ids, batch.noised

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        def pair(values: Tensor) -> tuple[Tensor, Tensor]:
            return values[b, q], values[b, k]

        return _same(pair(documents)) & _visible(batch.rule, pair(noised), pair(blocks), pair(positions))

    return visible


def _same(values: tuple[Tensor, Tensor]) -> Tensor:
    return values[0] == values[1]


def _visible(
    rule: AttentionRule,
    noised: tuple[Tensor, Tensor],
    block: tuple[Tensor, Tensor],
    position: tuple[Tensor, Tensor],
) -> Tensor:
    """Whether a query sees a key of the same document; every argument holds the query's and the key's value."""
    earlier, same = block[1] < block[0], block[1] == block[0]
    within_noised = same & (position[1] <= position[0]) if rule.noised == "causal" else same
    within_clean = position[1] <= position[0] if rule.clean == "causal" else block[1] <= block[0]
    from_noised = torch.where(noised[1], within_noised, earlier)
    return torch.where(noised[0], from_noised, ~noised[1] & within_clean)
