"""A model for formats that have one scale for a matrix and no place for a low-rank correction."""

from __future__ import annotations

from wrinklefree.artifact.parts import ModelParts, TernaryPart
from wrinklefree.export.fit import Conversion, refusal, without_factors
from wrinklefree.export.gguf_layers import one_scale_each


def one_scale_model(model: ModelParts, name: str, lossy: bool) -> tuple[ModelParts, tuple[Conversion, ...]]:
    """Return the model with one scale for each layer and no corrections, and what had to be converted.

    ``name`` is the format's, for messages.

    Raises: InputError for the first layer that this changes, unless ``lossy``.
    """
    fitted, conversions = one_scale_each(model, name, lossy)
    for part in model.parts:
        if isinstance(part, TernaryPart) and part.rank:
            if not lossy:
                raise refusal(model, part.name, f"has a low-rank correction, {name} has none", "packed, hf-plain")
            what = f"its low-rank correction of rank {part.rank} was left out"
            conversions.append(Conversion(part.name, "lossy", what))
    return without_factors(fitted), tuple(conversions)
