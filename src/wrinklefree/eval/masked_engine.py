"""The losses of masked tokens by the native engine: what `eval.diffusion` measures, for packed models.

Block by block, as in decoding: the finished blocks are in the cache, computed with the rule of the clean half; the rows
of the current one are computed anew for each mask, filled up with MASK to the whole block.

Shapes: T tokens of a window, S samples, V vocabulary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.engine import Batch, BatchItem, Engine
from wrinklefree.errors import InputError
from wrinklefree.eval.diffusion import Ids, Losses, MaskedLosses, Masks
from wrinklefree.eval.loss import token_losses


def engine_masked_losses(engine: Engine, marker: DiffusionMarker) -> MaskedLosses:
    """Return the masked losses of a packed model; the engine gives MASK and padding no probability.

    They raise InputError for a model whose documents are one block each, which the engine has no cache for, and for a
    window whose last block reaches beyond the engine's context.
    """

    def losses(ids: Ids, masks: Masks) -> Losses:
        if marker.block_size is None:
            raise InputError("--likelihood block: this model was trained with documents as one block (block_size "
                             "null), which the engine does not run; measure its checkpoint instead")  # fmt: skip
        with Batch(engine) as batch:
            return _Window(batch, batch.open(), marker, ids, masks).losses()

    return losses


class _Window:
    """One window in one slot."""

    def __init__(self, batch: Batch, slot: int, marker: DiffusionMarker, ids: Ids, masks: Masks) -> None:
        assert marker.block_size is not None
        self._batch, self._slot, self._marker = batch, slot, marker
        self._ids, self._masks, self._size = ids, masks, marker.block_size
        self._noised_block = 1 if marker.rule.noised == "causal" else self._size
        self._clean_block = 1 if marker.rule.clean == "causal" else self._size

    def losses(self) -> Losses:
        found = np.zeros(self._masks.shape)
        before: NDArray[np.float32] | None = None  # logits [1, V] of the last finished token
        for start in range(0, len(self._ids), self._size):
            stop = min(start + self._size, len(self._ids))
            for sample, mask in enumerate(self._masks):
                places = start + np.flatnonzero(mask[start:stop])
                if len(places):
                    rows = self._rows(start, stop, mask, places, before)
                    found[sample, places] = token_losses(rows, self._ids[places])
            if stop < len(self._ids):
                before = self._finish(start, stop)
        return found

    def _rows(
        self, start: int, stop: int, mask: NDArray[np.bool_], places: Ids, before: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Return the logits that predict the masked ``places`` of a block, [len(places), V]."""
        tokens = np.full(self._size, self._marker.mask_token_id, np.int64)
        tokens[: stop - start] = np.where(mask[start:stop], tokens[: stop - start], self._ids[start:stop])
        shift = int(self._marker.token_shift)
        first = int(shift and places[0] == start)
        wanted = [int(place) - start - shift for place in places[first:]]
        item = BatchItem(self._slot, tokens, want=wanted or "none", start=start, block=self._noised_block)
        (rows,) = self._batch.step([item])
        if not first:
            return rows
        assert before is not None  # the first token of the first block is never masked
        return np.concatenate([before, rows])

    def _finish(self, start: int, stop: int) -> NDArray[np.float32]:
        """Compute a block with the clean rule; return the logits after its last token, a copy."""
        item = BatchItem(self._slot, self._ids[start:stop], want="last", start=start, block=self._clean_block)
        (rows,) = self._batch.step([item])
        return rows.copy()
