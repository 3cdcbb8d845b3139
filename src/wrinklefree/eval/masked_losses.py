"""The losses of masked tokens by a torch model, with the view of training: what `eval.diffusion` measures.

The row is [noised | clean] with the attention of `models.block_attention`; the last block of the noised half is filled
up with MASK, because decoding cannot know where a text ends. With token shift a token is predicted by the state before
it, the first one of a block by the clean state before it (see `objectives.noise`).

Shapes: T tokens of a window, N noised slots (T rounded up to whole blocks), S samples, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wrinklefree.data.batch import IGNORE_INDEX
from wrinklefree.eval.diffusion import Ids, Losses, MaskedLosses, Masks
from wrinklefree.models.block_attention import BlockBatch
from wrinklefree.models.forward import forward, soft_capped
from wrinklefree.models.mask_token import DiffusionMarker

_SLOTS_AT_ONCE = 4096  # of both halves of all rows of a forward
_ROWS = 128  # of logits at once: 128 of a vocabulary of 150,000 take 80 MB


def torch_masked_losses(model: nn.Module, marker: DiffusionMarker, never: Sequence[int] = ()) -> MaskedLosses:
    """Return the masked losses of ``model``; MASK and the tokens ``never`` have no probability.

    A ternary model belongs in `full_strength`.
    """
    banned = [marker.mask_token_id, *never]

    @torch.inference_mode()
    def losses(ids: Ids, masks: Masks) -> Losses:
        found = np.zeros(masks.shape)
        tokens = torch.from_numpy(ids).to(next(model.parameters()).device)
        most = max(1, _SLOTS_AT_ONCE // (2 * len(ids)))
        for start in range(0, len(masks), most):
            part = masks[start : start + most]
            batch, noised_slots = _view(tokens, torch.from_numpy(part).to(tokens.device), marker)
            output = forward(model, batch)
            sample, place = np.nonzero(part)
            rows = output.final[sample, _states(place, marker, noised_slots)]
            targets = tokens[torch.from_numpy(place)]
            values = [
                _losses(soft_capped(output.head(states), output.softcap), wanted, banned)
                for states, wanted in zip(rows.split(_ROWS), targets.split(_ROWS), strict=True)
            ]
            found[start + sample, place] = np.concatenate(values)
        return found

    return losses


def _states(place: NDArray[np.int64], marker: DiffusionMarker, noised_slots: int) -> NDArray[np.int64]:
    """Return the slot of the row whose state predicts each place."""
    if not marker.token_shift:
        return place
    first = place % marker.block_size == 0 if marker.block_size else np.zeros(len(place), bool)
    return np.where(first, noised_slots + place - 1, place - 1)


def _losses(logits: Tensor, targets: Tensor, banned: list[int]) -> NDArray[np.float64]:
    logits = logits.double()
    logits[:, banned] = float("-inf")
    found: NDArray[np.float64] = nn.functional.cross_entropy(logits, targets, reduction="none").cpu().numpy()
    return found


def _view(tokens: Tensor, masks: Tensor, marker: DiffusionMarker) -> tuple[BlockBatch, int]:
    """Return [noised | clean] rows for each mask [S, T] (no clean half when a document is one block), and N."""
    length, device = len(tokens), tokens.device
    size = marker.block_size or length
    slots = -(-length // size) * size
    places = torch.arange(slots, device=device)
    noised = torch.full((len(masks), slots), marker.mask_token_id, device=device)
    noised[:, :length] = torch.where(masks, marker.mask_token_id, tokens)
    ids, positions = noised, places
    if marker.block_size is not None:
        ids = torch.cat([noised, tokens.expand(len(masks), -1)], dim=1)
        positions = torch.cat([places, places[:length]])
    row = positions.expand(len(masks), -1)
    batch = BlockBatch(
        input_ids=ids,
        labels=torch.full_like(ids, IGNORE_INDEX),
        position_ids=row,
        document_ids=torch.zeros_like(ids, dtype=torch.int32),
        block_ids=(row // size).to(torch.int32),
        noised=torch.arange(ids.shape[1], device=device).expand(len(masks), -1) < slots,
        rule=marker.rule,
    )
    return batch, slots
