"""Any GGUF file of our architectures as plain numbers under Hugging Face's names: a teacher, a model to convert."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.read_model import GgufModel, ternary_layer

# How much of a norm's gains Hugging Face's class adds to the tensor.
_GAIN_OFFSET = {"gemma3_text": 1.0}


def float_tensors(model: GgufModel) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield name and numbers, float32, of each tensor of Hugging Face's class; a ``.scale`` is multiplied in.

    Raises: FormatError when a tensor's type cannot be turned into numbers, or one of them is not finite.
    """
    linears = model.sizes.linears()
    offset = np.float32(_GAIN_OFFSET.get(model.sizes.model_type, 0.0))
    for module, shape in model.tensors.items():
        if module not in linears:
            values = model.values(module)
            yield f"{module}.weight", values - offset if len(shape) == 1 else values
            continue
        yield f"{module}.weight", _layer(model, module)
        if (bias := model.bias(module)) is not None:
            yield f"{module}.bias", bias


def _layer(model: GgufModel, module: str) -> NDArray[np.float32]:
    tensor = model.tensor(module)
    assert tensor is not None
    if tensor.type.name == "I2_S":  # one scale for the tensor; its codes are no numbers without a rule for their order
        codes, scales = ternary_layer(model, module)
        return codes * scales
    values, scale = model.values(module), model.scale(module)
    return values if scale == 1 else values * scale
