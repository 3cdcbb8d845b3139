"""What a teacher is to the training loop, whatever it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError


class TeacherError(RuntimeError):
    """A teacher that worked before does not answer any more; the message says what was seen and what to do."""


@dataclass(frozen=True)
class TopKOutput:
    """The K most probable next tokens of every position: what a teacher gives that shows no hidden states.

    ``ids`` [B, T, K] integer, most probable first; ``log_probs`` [B, T, K] float32, at temperature 1, normalised over
    the whole vocabulary (so a position's probabilities add up to at most 1; the rest belongs to all other tokens).
    Position t holds the distribution of token t + 1 given the tokens up to t of its document. Where a document ends
    nothing is predicted; there, and on padding, the content means nothing.
    """

    ids: Tensor
    log_probs: Tensor

    def __post_init__(self) -> None:
        if self.ids.shape != self.log_probs.shape or self.ids.ndim != 3:
            raise ValueError(f"TopKOutput: ids {tuple(self.ids.shape)}, log_probs {tuple(self.log_probs.shape)}")

    @property
    def top_k(self) -> int:
        return int(self.ids.shape[-1])

    def at(self, places: Tensor) -> TopKRows:
        """Return the rows at ``places`` [n], indices into the positions of the batch, flattened to [B T]."""
        return TopKRows(self.ids.flatten(0, 1)[places].long(), self.log_probs.flatten(0, 1)[places].float())


@dataclass(frozen=True)
class TopKRows:
    """``ids`` int64 and ``log_probs`` float32, both [n, K]: the teacher of n predicted tokens, most probable first."""

    ids: Tensor
    log_probs: Tensor

    def __getitem__(self, rows: slice) -> TopKRows:
        return TopKRows(self.ids[rows], self.log_probs[rows])


class Teacher(Protocol):
    """Loaded when first asked, released when nobody will ask again."""

    @property
    def loaded(self) -> bool:
        """Return whether it is in memory (or connected) now."""
        ...

    def forward(self, batch: TokenBatch, want: frozenset[str]) -> Any:
        """Return `models.forward.ForwardOutput` of ``batch`` without gradient, or `TopKOutput`.

        Raises: InputError when a teacher that gives tokens is asked for states, TeacherError when it fails.
        """
        ...

    def release(self) -> None:
        """Give its memory back; the next `forward` would load it again."""
        ...


@runtime_checkable
class PrefetchingTeacher(Teacher, Protocol):
    """A teacher whose answers take a while and can be asked for ahead."""

    @property
    def prefetches(self) -> bool:
        """Return whether asking ahead would do anything."""
        ...

    def prefetch(self, batches: Sequence[TokenBatch]) -> None:
        """Begin to fetch the answers for these batches, as far as there is room; order and number change no result."""
        ...

    def wait(self, batches: Sequence[TokenBatch]) -> None:
        """Return when `forward` would answer for all of ``batches`` at once.

        Raises: TeacherError when an answer cannot be had.
        """
        ...


def refuse_states(kind: str, want: frozenset[str]) -> None:
    """Raise InputError when ``want`` names states, which a teacher that answers with tokens does not have."""
    if want:
        raise InputError(
            f"teacher.kind={kind}: an objective needs {', '.join(sorted(want))}, but this teacher answers with top-K "
            "probabilities only; use teacher.kind=local, or objectives on logits alone (logits_kd)"
        )
