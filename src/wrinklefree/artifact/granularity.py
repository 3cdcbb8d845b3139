"""One granularity for a whole model, where each layer came with scales as fine as its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.packing import GRANULARITIES, Granularity

_ORDER = {name: rank for rank, name in enumerate(GRANULARITIES)}


@dataclass(frozen=True)
class Fineness:
    """How fine scales are; ``group_size`` counts only where ``granularity`` is group."""

    granularity: Granularity = "tensor"
    group_size: int = 64

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts from coarse to fine."""
        return _ORDER[self.granularity], -self.group_size if self.granularity == "group" else 0

    def spread(self, scales: NDArray[np.float32], rows: int, columns: int, own: Fineness) -> NDArray[np.float32]:
        """Return ``scales`` of the fineness ``own`` as scales of this one, which is as fine or finer, each repeated."""
        if self.granularity == "tensor":
            return scales
        if own.granularity == "tensor":
            scales = np.repeat(scales, rows)
        if self.granularity == "row":
            return scales
        groups = -(-columns // self.group_size)
        if own.granularity != "group":
            return np.repeat(scales[:, None], groups, axis=1)
        return np.repeat(scales, own.group_size // self.group_size, axis=1)[:, :groups]


def finest(layers: Iterable[Fineness]) -> Fineness:
    """Return the coarsest fineness that holds every layer's scales; group sizes are multiples of one another."""
    return max(layers, key=lambda fineness: fineness.rank, default=Fineness())
