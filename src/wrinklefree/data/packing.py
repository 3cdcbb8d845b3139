"""Sequences of fixed length cut from the flat array of tokens, with document isolation.

Sequence i holds tokens i*T to (i+1)*T; only the last one is padded. Nothing is dropped and nothing is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wrinklefree.data.batch import IGNORE_INDEX, PADDING_DOCUMENT, TokenBatch
from wrinklefree.data.tokens import TokenizedDocuments
from wrinklefree.errors import InputError


@dataclass(frozen=True)
class PackedSequences:
    """The documents as ``len(self)`` sequences of ``length`` tokens. ``pad_id`` fills the end of the last one."""

    documents: TokenizedDocuments
    length: int
    pad_id: int

    def __post_init__(self) -> None:
        if self.length < 2:
            raise InputError(f"sequence length: found {self.length}, at least 2 tokens are needed to predict one")

    def __len__(self) -> int:
        return -(-self.documents.num_tokens // self.length)

    def batch(self, indices: NDArray[np.int64]) -> TokenBatch:
        """Return the sequences ``indices`` [B], in that order."""
        return to_batch([self.row(int(index)) for index in indices])

    def row(self, index: int) -> NDArray[np.int64]:
        """Return int64 [4, T]: ids, labels, positions, documents of one sequence."""
        first = index * self.length
        tokens = np.asarray(self.documents.tokens[first : first + self.length], np.int64)
        places = np.arange(first, first + len(tokens))
        owner = np.searchsorted(self.documents.starts, places, side="right") - 1
        # A document that began in an earlier sequence begins again here: attention does not reach back.
        begin = np.maximum(self.documents.starts[owner], first)
        row = np.empty((4, self.length), np.int64)
        used = len(tokens)
        row[0, :used], row[2, :used], row[3, :used] = tokens, places - begin, owner - owner[0]
        row[1, :used] = np.where(places == begin, IGNORE_INDEX, tokens)
        row[0, used:], row[1, used:], row[2, used:], row[3, used:] = self.pad_id, IGNORE_INDEX, 0, PADDING_DOCUMENT
        return row


def to_batch(rows: list[NDArray[np.int64]]) -> TokenBatch:
    """Return B rows of `PackedSequences.row` as a batch on the CPU."""
    stacked = torch.from_numpy(np.stack(rows, axis=1))
    return TokenBatch(stacked[0], stacked[1], stacked[2], stacked[3].to(torch.int32))
