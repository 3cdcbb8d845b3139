"""Writing the ``.bin`` file of early converters (`artifact.sgl_bin_file`), in the dialect with a scale at every tensor.

That is the one its readers read. Everything but ternary layers is float32 unless asked otherwise: the first of those
readers copied 16-bit floats into float32 arrays byte for byte.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.files import space_errors
from wrinklefree.artifact.huggingface.floats import FloatType, holds, narrow
from wrinklefree.artifact.origin import HF_KEY, origin_of
from wrinklefree.artifact.parts import ModelParts, TensorChange, TernaryPart
from wrinklefree.artifact.sgl_bin_file import MAGIC, TYPE_NAMES, VERSION, pack_planes
from wrinklefree.errors import InputError
from wrinklefree.export.hf_model import float_tensors, one_epsilon
from wrinklefree.export.one_scale_model import one_scale_model

NAME = "a .bin file"


@dataclass(frozen=True)
class BinOptions:
    """How a ``.bin`` file is written. ``dtype``: of what is not ternary; ``lossy``: convert what it cannot hold."""

    dtype: FloatType = "F32"
    lossy: bool = False


def prepare_bin(parts: ModelParts, options: BinOptions | None = None) -> ModelParts:
    """Return the model as `write_sgl_bin` writes it. Raises: InputError naming the first part that has no place."""
    options = options or BinOptions()
    config = {
        key: value for key, value in parts.config.items() if key not in ("quantization_config", "auto_map", HF_KEY)
    }
    eps = float(config["rms_norm_eps"])
    fitted, _ = one_scale_model(parts, NAME, options.lossy)
    prepared = replace(fitted, config=config, parts=one_epsilon(fitted.parts, eps))
    for _, name, values in float_tensors(prepared):
        if not options.lossy and not holds(options.dtype, values):
            raise InputError(f"{name}: holds values that {options.dtype} rounds; F32 holds them, --lossy rounds them")
    return prepared


def write_sgl_bin(path: Path, parts: ModelParts, options: BinOptions | None = None) -> list[TensorChange]:
    """Write the file ``path``; return what became of each part. The tokenizer has no place in it.

    Raises: InputError, before anything is written, when the format cannot hold the model; for lack of space.
    """
    options = options or BinOptions()
    model = prepare_bin(parts, options)
    config = json.dumps({**model.config, HF_KEY: origin_of(model.info)}, allow_nan=False).encode()
    written: dict[str, tuple[str, int]] = {}
    count = sum(1 for _ in float_tensors(model)) + sum(isinstance(part, TernaryPart) for part in model.parts)
    with space_errors(path), path.open("xb") as stream:
        stream.write(MAGIC + struct.pack("<II", VERSION, len(config)) + config + struct.pack("<I", count))
        for owner, name, dtype, array, scale in _tensors(model, options):
            stream.write(_entry(name, dtype, array, scale))
            stream.write(np.ascontiguousarray(array).data)
            kind = f"2-bit, {_SCALE}" if dtype == "U8" else dtype
            first, num_bytes = written.get(owner, (kind, 0))
            written[owner] = (kind if dtype == "U8" else first, num_bytes + array.nbytes)
    return [
        TensorChange(part.name, part.stored.type_name, part.stored.num_bytes, *written[part.name])
        for part in parts.parts
    ]


_SCALE = "F32 scale per tensor"


def _tensors(model: ModelParts, options: BinOptions) -> Iterator[tuple[str, str, str, NDArray[Any], np.float32 | None]]:
    """Yield owner, name, type, array and scale of each tensor."""
    for part, name, values in float_tensors(model):
        yield part.name, name, options.dtype, narrow(values, options.dtype), None
    for part in model.parts:
        if isinstance(part, TernaryPart):
            codes, scales = part.codes_and_scales()
            yield part.name, f"{part.name}.weight", "U8", pack_planes(codes), scales[0]


def _entry(name: str, dtype: str, array: NDArray[Any], scale: np.float32 | None) -> bytes:
    text = name.encode()
    head = struct.pack("<I", len(text)) + text + struct.pack("<II", TYPE_NAMES.index(dtype), array.ndim)
    shape = struct.pack(f"<{array.ndim}I", *array.shape)
    return head + shape + struct.pack("<IfQ", scale is not None, 0.0 if scale is None else scale, array.nbytes)
