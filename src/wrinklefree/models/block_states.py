"""The states that block decoding reads: from a forward of everything, or from keys and values kept by position.

`FullStates` forgets everything between two forwards. `CachedStates` computes the rows it is told to; all other rows
keep the keys, values and final states of their last computation. Where no row is left out that another one sees, both
give the same (a test holds them to it).

Shapes: R rows, T positions so far, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.data.batch import IGNORE_INDEX
from wrinklefree.models.block_attention import BlockBatch
from wrinklefree.models.forward import forward, forward_rows


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


class FullStates:
    """States of the last forward over all positions. ``computed``: rows that went through the model."""

    def __init__(self, model: nn.Module, marker: DiffusionMarker) -> None:
        self._model, self._marker = model, marker
        self._final: Tensor | None = None
        self.computed = 0

    @property
    def head(self) -> tuple[nn.Module, float | None]:
        """The module that makes logits of final states, and the cap of its logits."""
        return self._model.get_submodule("lm_head"), getattr(self._model.config, "final_logit_softcapping", None)

    def finish(self, ids: Sequence[int], begin: int, end: int) -> None:
        """Positions ``begin`` to ``end`` are finished blocks from now on."""

    @torch.no_grad()
    def compute(self, ids: Sequence[int], rows: Sequence[int], start: int) -> None:
        """Compute ``ids``, whose current block begins at ``start``; ``rows`` are those that somebody needs."""
        self._final = forward(self._model, decoding_batch(self._model, ids, self._marker, start)).final[0]
        self.computed += len(ids)

    def final(self, positions: Sequence[int]) -> Tensor:
        """Return the states after the final norm, [R, D]."""
        assert self._final is not None
        return self._final[list(positions)]


class CachedStates(FullStates):
    """States by position, each from the last time its row was computed. A finished block is computed once more."""

    def __init__(self, model: nn.Module, marker: DiffusionMarker) -> None:
        super().__init__(model, marker)
        self.store = KeyValueStore()
        self._finished: list[int] = []  # rows whose keys and values are still those of a current block

    def finish(self, ids: Sequence[int], begin: int, end: int) -> None:
        """Compute the rows of a finished block with the attention of the clean half, at the next `compute`."""
        self._finished += range(begin, end)

    @torch.no_grad()
    def compute(self, ids: Sequence[int], rows: Sequence[int], start: int) -> None:
        """Compute ``rows`` of the current block and what was finished since the last time, in one pass."""
        asked = [*self._finished, *rows]
        self._finished = []
        states = forward_rows(self._model, decoding_batch(self._model, ids, self._marker, start), asked, self.store)
        missing = len(ids) - (0 if self._final is None else len(self._final))
        kept = states.new_zeros(missing, states.shape[1])
        self._final = kept if self._final is None else torch.cat([self._final, kept])
        self._final[asked] = states
        self.computed += len(asked)


class KeyValueStore:
    """Keys and values of each layer by position, [1, heads, T, head size]; stands where transformers has a cache."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None  # positions of the rows in the pass
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put the rows of a pass in their places; return all keys and values of ``layer``."""
        assert self.rows is not None
        old = self.layers.get(layer, (keys[:, :, :0], values[:, :, :0]))
        length = max(int(self.rows.max()) + 1, old[0].shape[2])
        new = tuple(self._placed(kept, given, length) for kept, given in zip(old, (keys, values), strict=True))
        self.layers[layer] = (new[0], new[1])
        return self.layers[layer]

    def get_seq_length(self, layer: int = 0) -> int:
        """Return 0: positions are always given."""
        return 0

    def _placed(self, kept: Tensor, given: Tensor, length: int) -> Tensor:
        out = kept.new_zeros(*kept.shape[:2], length, kept.shape[3])
        out[:, :, : kept.shape[2]] = kept
        out[:, :, self.rows] = given
        return out
