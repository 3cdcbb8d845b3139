"""What a client may want to know of the served model before it asks."""

from __future__ import annotations

from typing import Any

from wrinklefree.engine import Engine
from wrinklefree.engine.modes import possible_modes, read_marker


def model_facts(engine: Engine) -> dict[str, Any]:
    """Return the object ``wrinklefree`` of a model in `/v1/models`.

    ``context``: tokens of prompt and answer together. ``modes``: those a request may name, beside auto.
    ``block_size``: positions of a block that are denoised together; null for a model that does not.
    """
    marker = read_marker(engine.config)
    return {
        "context": engine.context,
        "vocabulary": engine.vocab_size,
        "modes": list(possible_modes(engine)),
        "block_size": None if marker is None else marker.block_size,
    }
