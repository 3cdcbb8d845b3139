"""What a teacher is to the training loop, whatever it runs on."""

from __future__ import annotations

from typing import Any, Protocol

from wrinklefree.data.batch import TokenBatch


class Teacher(Protocol):
    """Loaded when first asked, released when nobody will ask again."""

    @property
    def loaded(self) -> bool:
        """Return whether it is in memory (or connected) now."""
        ...

    def forward(self, batch: TokenBatch, want: frozenset[str]) -> Any:
        """Return the teacher's `models.forward.ForwardOutput` of ``batch``, without gradient."""
        ...

    def release(self) -> None:
        """Give its memory back; the next `forward` would load it again."""
        ...
