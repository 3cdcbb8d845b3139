"""The endless stream of packed sequences a run consumes, and its position: one number.

Sequence k is a function of (seed, k, weight history) alone. So there is no loader state to save and nothing can be
one batch ahead: a checkpoint stores how many sequences were consumed (and the weight history), any batch size, any
number of ranks, any interruption sees the same sequences in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wrinklefree.data.batch import TokenBatch
from wrinklefree.data.mixture import Mixture
from wrinklefree.data.packing import PackedSequences, to_batch
from wrinklefree.data.permutation import key, permute
from wrinklefree.data.read_ahead import Place, ReadAhead
from wrinklefree.errors import InputError

_PURPOSE = 2


class PackedStream:
    """Sequences of one source or of a weighted mixture, each source in a new random order every epoch."""

    def __init__(
        self,
        sources: Sequence[PackedSequences],
        seed: int = 0,
        weights: Sequence[float] | None = None,
        workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        """``weights``: shares of the sources, in sequences; None gives every source the same share.

        ``workers`` threads build batches ahead, ``prefetch`` each; what is dealt does not depend on either.

        Raises: InputError when there is no source, an empty one, or sources of different sequence lengths.
        """
        if not sources or not all(len(source) for source in sources):
            raise InputError("data stream: a source without any sequence was given")
        if len({source.length for source in sources}) > 1:
            raise InputError(f"data stream: sequence lengths differ: {[source.length for source in sources]}")
        self.sources = tuple(sources)
        self.seed = seed
        self.length = sources[0].length
        weights = [1.0] * len(sources) if weights is None else weights
        if len(weights) != len(sources):
            raise InputError(f"data stream: found {len(weights)} weights for {len(sources)} sources")
        self.mixture = Mixture.start(seed, weights)
        self.ahead = ReadAhead(self._build, workers, max(workers, 1) * prefetch)

    @property
    def num_sequences(self) -> int:
        """Sequences of all sources together; with one source, the length of an epoch."""
        return sum(len(source) for source in self.sources)

    def locate(self, position: int) -> tuple[int, int]:
        """Return (source, index of the sequence in it) of sequence ``position`` >= 0 of the stream."""
        return self._locate(self.mixture, position)

    def _locate(self, mixture: Mixture, position: int) -> tuple[int, int]:
        if position < 0:
            raise InputError(f"data stream: position {position} is negative")
        source, used = mixture.locate(position)
        size = len(self.sources[source])
        epoch, place = divmod(used, size)
        order = key(mixture.seed, _PURPOSE, source, epoch)
        return source, int(permute(np.array([place]), size, order)[0])

    def batch(self, first_sequence: int, size: int, rank: int = 0, world_size: int = 1) -> TokenBatch:
        """Return sequences ``first_sequence`` to ``first_sequence + size`` of the stream, or one rank's part.

        ``size`` counts all ranks: rank r of W gets positions r, r + W, r + 2 W, ..., so the ranks' batches together
        are the batch of one rank, whatever W is.

        Raises: InputError when ``size`` is not a positive multiple of ``world_size``.
        """
        if size < 1 or size % world_size or not 0 <= rank < world_size:
            raise InputError(f"batch of {size} sequences for rank {rank} of {world_size}: it must divide evenly")
        return self.ahead.batch(self.mixture, (first_sequence, size, rank, world_size))

    def _build(self, mixture: Mixture, place: Place) -> TokenBatch:
        """A function of its arguments alone: it may run in any thread, before or after the mixture changes."""
        first, size, rank, world_size = place
        places = (self._locate(mixture, k) for k in range(first + rank, first + size, world_size))
        return to_batch([self.sources[source].row(index) for source, index in places])

    def set_weights(self, weights: Sequence[float], position: int) -> None:
        """Change the mixture from sequence ``position`` on; sequences before it stay what they were."""
        self.mixture = self.mixture.changed(position, weights)
        self.ahead.drop_from(position)

    def state_dict(self) -> dict[str, Any]:
        """Return what else than the position a checkpoint needs: seed, weight history, sizes to notice other data."""
        return {
            "seed": self.seed,
            "history": [[position, list(weights)] for position, weights in self.mixture.history],
            "length": self.length,
            "num_tokens": [source.documents.num_tokens for source in self.sources],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over seed and weight history.

        Raises: InputError when the checkpoint was made with other data or another sequence length.
        """
        mine = self.state_dict()
        for name in ("length", "num_tokens"):
            if state.get(name) != mine[name]:
                raise InputError(
                    f"data stream: the checkpoint was made with {name} {state.get(name)}, found {mine[name]}; "
                    "resume with the data it was started with, or start a new run"
                )
        self.seed = int(state["seed"])
        history = tuple((int(first), tuple(map(float, weights))) for first, weights in state["history"])
        self.mixture = Mixture(self.seed, history)
        self.ahead.drop_from(0)
