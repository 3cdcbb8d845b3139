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

from wrinklefree.artifact.floats import FloatType, holds, smallest
from wrinklefree.artifact.manifest import WEIGHTS
from wrinklefree.artifact.parts import ModelParts, TensorChange, TernaryPart
from wrinklefree.artifact.safetensors_file import SafetensorsWriter, TensorInfo
from wrinklefree.artifact.shards import ShardedTensors
from wrinklefree.errors import InputError, VerificationError
from wrinklefree.export.hf_bitnet import tensor_changes, write_rest
from wrinklefree.export.hf_model import config_json, float_tensors, for_transformers, narrowed


@dataclass(frozen=True)
class PlainOptions:
    """How a plain directory is written.

    ``dtype``: one type for every tensor; None is, for each tensor, the smallest that holds it exactly. ``lossy``:
    round what the chosen type does not hold.
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
    infos = list(_infos(model, options))
    types = {info.name: info.dtype for info in infos}
    with SafetensorsWriter(directory / WEIGHTS, infos, {"format": "pt"}) as writer:
        for name, values in plain_tensors(model):
            writer.write(name, narrowed(values, types[name]))  # type: ignore[arg-type]
    write_rest(directory, config_json(model, set(types.values()) == {"BF16"}), model)
    kinds = {part.name: f"{types[f'{part.name}.weight']}, ternary values" for part in _ternary(model)}
    return tensor_changes(parts, infos, kinds)


def check_plain(directory: Path, parts: ModelParts, options: PlainOptions | None = None) -> int:
    """Compare a written directory with its source and return how many tensors were compared.

    Raises: VerificationError naming the first tensor that is not what `write_plain` writes, bit for bit.
    """
    options = options or PlainOptions()
    model = for_transformers(parts)
    types = {info.name: info.dtype for info in _infos(model, options)}
    written = ShardedTensors(directory)
    if written.names != types.keys():
        raise VerificationError(f"{directory}: holds other tensors than were written")
    for name, values in plain_tensors(model):
        if not np.array_equal(written.array(name), narrowed(values, types[name])):  # type: ignore[arg-type]
            raise VerificationError(f"{directory}: {name}: was read back with other values; nothing was written")
    return len(types)


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


def _infos(model: ModelParts, options: PlainOptions) -> Iterator[TensorInfo]:
    """Yield the tensors to write with their types; the codes of no layer are looked at."""
    for _, name, values in float_tensors(model):
        yield TensorInfo(name, _checked_type(name, values, options), values.shape)
    for part in _ternary(model):
        name = f"{part.name}.weight"
        if part.factors is None:
            yield TensorInfo(name, _checked_type(name, part.codes_and_scales()[1], options), part.shape)
        else:
            if options.dtype not in (None, "F32") and not options.lossy:
                raise InputError(f"{name}: has a low-rank correction added, which {options.dtype} rounds; {_HOW}")
            yield TensorInfo(name, options.dtype or "F32", part.shape)


_HOW = "leave the type out for the smallest exact one, or add --lossy to round"


def _checked_type(name: str, values: NDArray[np.float32], options: PlainOptions) -> FloatType:
    if options.dtype is None:
        return smallest(values)
    if not options.lossy and not holds(options.dtype, values):
        raise InputError(f"{name}: holds values that {options.dtype} rounds; {_HOW}")
    return options.dtype


def _ternary(model: ModelParts) -> Iterator[TernaryPart]:
    return (part for part in model.parts if isinstance(part, TernaryPart))


def _expanded(scales: NDArray[np.float32], group_size: int, columns: int) -> NDArray[np.float32]:
    if scales.ndim == 2:
        return np.repeat(scales, group_size, axis=1)[:, :columns]
    return scales[:, None]
