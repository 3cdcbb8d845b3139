"""A batch of packed token sequences: the only shape in which data reaches models, teachers and objectives.

Shapes: B sequences, T tokens, N predicted tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from wrinklefree.errors import InputError

IGNORE_INDEX = -100
PADDING_DOCUMENT = -1
PREDICTED = "predicted"


@dataclass(frozen=True)
class Rows:
    """Tokens to predict, in the order in which the head sees them; all tensors ``[N]``.

    ``states`` int64: which state predicts each, an index into the states of this batch, flattened to ``[B T, D]``.
    ``targets`` int64: the tokens. ``teacher`` int64: the state with which an autoregressive teacher, reading the clean
    batch, predicts the same token (into its states, flattened); None when that is ``states``, as on the clean batch.
    ``weights`` float32: of each token in a sum; None is 1. ``own``: the student teaches itself; ``teacher`` is an index
    into the states of this batch.
    """

    states: Tensor
    targets: Tensor
    teacher: Tensor | None = None
    weights: Tensor | None = None
    own: bool = False


@dataclass(frozen=True)
class TokenBatch:
    """B packed sequences of T tokens. Every tensor but the last is ``[B, T]``; all are on one device.

    ``input_ids`` int64.
    ``labels`` int64: equal to ``input_ids`` (the objective shifts by one), IGNORE_INDEX on padding and on the first
    token of every document, which nothing before it can predict. A document that was cut at the end of a sequence
    starts anew in the next one: it sees nothing of its first part, so its first token there is ignored too.
    ``position_ids`` int64: 0, 1, 2, ... restarting in each document.
    ``document_ids`` int32: number of the document within its sequence from 0; PADDING_DOCUMENT on padding.
    ``sequence_ids`` int64 ``[B]``: number of each sequence in the run, which random views are drawn by; None when
    nobody numbered them.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    document_ids: Tensor
    sequence_ids: Tensor | None = None

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
        return replace(self, **{n: t.to(device, non_blocking=True) for n, t in self._tensors().items()})

    def rows(self, start: int, stop: int) -> TokenBatch:
        """Return sequences ``start`` to ``stop`` (a view): one micro batch of an accumulated step."""
        return replace(self, **{name: tensor[start:stop] for name, tensor in self._tensors().items()})

    def numbered(self, first_sequence: int) -> TokenBatch:
        """Return the batch with its sequences numbered from ``first_sequence``."""
        stop = first_sequence + self.num_sequences
        return replace(self, sequence_ids=torch.arange(first_sequence, stop, device=self.input_ids.device))

    def selection(self, name: str = PREDICTED) -> Rows:
        """Return the predicted tokens of that name; a clean batch has one kind: each token from the one before it.

        Raises: InputError for a name this batch does not have.
        """
        if name != PREDICTED:
            raise InputError(f"objective: it predicts the {name!r} tokens, but this view of the batch has none")
        sequence, place = torch.nonzero(self.labels[:, 1:] != IGNORE_INDEX, as_tuple=True)
        return Rows(sequence * self.labels.shape[1] + place, self.labels[sequence, place + 1].long())

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}
