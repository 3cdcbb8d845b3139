"""Writing a ternary model as plain Hugging Face weights, which transformers loads without any BitNet layer.

Each matrix is codes times scales, and its low-rank correction added, as floats. What transformers then computes differs
from ours in one thing: it does not round activations to int8. No torch, no transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.huggingface.floats import FloatType, holds
from wrinklefree.artifact.huggingface.shards import ShardedTensors
from wrinklefree.artifact.manifest import WEIGHTS
from wrinklefree.artifact.parts import ModelParts, TensorChange, TernaryPart
from wrinklefree.artifact.safetensors_file import SafetensorsWriter, TensorInfo
from wrinklefree.errors import InputError, VerificationError
from wrinklefree.export.hf_bitnet import tensor_changes, write_rest
from wrinklefree.export.hf_model import config_json, float_tensors, float_type, for_transformers, narrowed


@dataclass(frozen=True)
class PlainOptions:
    """How a plain directory is written.

    ``dtype``: the type of every tensor; None is the 16 bits that the source says, where they hold everything exactly,
    else float32. ``lossy``: round what the chosen type does not hold.
    """

    dtype: FloatType | None = None
    lossy: bool = False


def write_plain(directory: Path, parts: ModelParts, options: PlainOptions | None = None) -> list[TensorChange]:
    """Write a directory that transformers loads as it loads any model; return what became of each part.

    Raises: InputError, before anything is written, when no class of transformers computes this model or the chosen
    type does not hold it exactly; for lack of space.
    """
    options = options or PlainOptions()
    model = for_transformers(parts)
    dtype = _type(model, options)
    infos = [TensorInfo(name, dtype, shape) for name, shape in _shapes(model)]
    with SafetensorsWriter(directory / WEIGHTS, infos, {"format": "pt"}) as writer:
        for name, values in plain_tensors(model):
            writer.write(name, narrowed(values, dtype))
    write_rest(directory, config_json(model, dtype), model)
    kinds = dict.fromkeys((part.name for part in _ternary(model)), f"{dtype}, ternary values")
    return tensor_changes(parts, infos, kinds)


def check_plain(directory: Path, parts: ModelParts, options: PlainOptions | None = None) -> int:
    """Compare a written directory with its source and return how many tensors were compared.

    Raises: VerificationError naming the first tensor that is not what `write_plain` writes, bit for bit.
    """
    options = options or PlainOptions()
    model = for_transformers(parts)
    dtype = _type(model, options)
    names = dict(_shapes(model)).keys()
    written = ShardedTensors(directory)
    if written.names != names:
        raise VerificationError(f"{directory}: holds other tensors than were written")
    for name, values in plain_tensors(model):
        if written.float_type(name) != dtype or not np.array_equal(written.array(name), narrowed(values, dtype)):
            raise VerificationError(f"{directory}: {name}: was read back with other values; nothing was written")
    return len(names)


def plain_tensors(model: ModelParts) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield every tensor of the model under the names transformers reads, as float32."""
    for _, name, values in float_tensors(model):
        yield name, values
    for part in _ternary(model):
        codes, scales = part.codes_and_scales()
        weight = codes.astype(np.float32)
        weight *= _expanded(scales, model.info.group_size, codes.shape[1])
        if part.factors is not None:
            weight += part.factors[0] @ part.factors[1]
        yield f"{part.name}.weight", weight


def _shapes(model: ModelParts) -> Iterator[tuple[str, tuple[int, ...]]]:
    for _, name, values in float_tensors(model):
        yield name, values.shape
    for part in _ternary(model):
        yield f"{part.name}.weight", part.shape


def _type(model: ModelParts, options: PlainOptions) -> FloatType:
    """The type of every tensor. The codes of no layer are looked at: a type that holds s holds -s and 0."""
    scales = {part.name: part.codes_and_scales()[1] for part in _ternary(model)}
    corrected = next((part.name for part in _ternary(model) if part.rank), None)
    if options.dtype is None:
        return "F32" if corrected is not None else float_type(model, scales.values())
    if options.dtype == "F32" or options.lossy:
        return options.dtype
    floats = ((name, values) for _, name, values in float_tensors(model))
    rounded = next((name for name, values in (*floats, *scales.items()) if not holds(options.dtype, values)), corrected)
    if rounded is not None:
        raise InputError(f"{rounded}: holds values that {options.dtype} rounds; F32 holds them, --lossy rounds them")
    return options.dtype


def _ternary(model: ModelParts) -> Iterator[TernaryPart]:
    return (part for part in model.parts if isinstance(part, TernaryPart))


def _expanded(scales: NDArray[np.float32], group_size: int, columns: int) -> NDArray[np.float32]:
    if scales.ndim == 2:
        return np.repeat(scales, group_size, axis=1)[:, :columns]
    return scales[:, None]
