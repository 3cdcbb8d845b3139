"""A batch of packed token sequences: the only shape in which data reaches models, teachers and objectives.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE_INDEX = -100
PADDING_DOCUMENT = -1


@dataclass(frozen=True)
class TokenBatch:
    """B packed sequences of T tokens. Every tensor is ``[B, T]``, on one device.

    ``input_ids`` int64.
    ``labels`` int64: equal to ``input_ids`` (the objective shifts by one), IGNORE_INDEX on padding and on the first
    token of every document, which nothing before it can predict. A document that was cut at the end of a sequence
    starts anew in the next one: it sees nothing of its first part, so its first token there is ignored too.
    ``position_ids`` int64: 0, 1, 2, ... restarting in each document.
    ``document_ids`` int32: number of the document within its sequence from 0; PADDING_DOCUMENT on padding.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    document_ids: Tensor

    @property
    def num_sequences(self) -> int:
        return self.input_ids.shape[0]

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.document_ids != PADDING_DOCUMENT).sum())

    @property
    def num_targets(self) -> int:
        """Tokens whose prediction is scored."""
        return int((self.labels != IGNORE_INDEX).sum())

    def to(self, device: torch.device | str) -> TokenBatch:
        """Return the batch on another device."""
        return TokenBatch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))

    def rows(self, start: int, stop: int) -> TokenBatch:
        """Return sequences ``start`` to ``stop`` (a view): one micro batch of an accumulated step."""
        return TokenBatch(*(getattr(self, name)[start:stop] for name in self.__dataclass_fields__))
