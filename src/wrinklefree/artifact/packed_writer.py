"""Writing the packed directory: ternary codes of 2 or 1.6 bits, scales, float32 norms, tables in 8, 6, 4 or 16 bits.

`packing.py` says what the bytes of a layer mean, `tables.py` those of a table, `manifest.py` which tensors there are;
docs/formats.md states all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.config import parse_config
from wrinklefree.artifact.files import json_bytes, sha256, write_bytes
from wrinklefree.artifact.manifest import CONFIG, WEIGHTS, PackedInfo, packed_tensors
from wrinklefree.artifact.packing import LAYOUT, pack_codes, pack_group_scales
from wrinklefree.artifact.parts import ModelParts, NormPart, Part, TablePart, TensorChange, TernaryPart
from wrinklefree.artifact.safetensors_file import SafetensorsWriter, TensorInfo
from wrinklefree.artifact.tables import QuantizedTable, TableFormat, pack_table
from wrinklefree.errors import FormatError, InputError

FACTORS = ("low_rank_u", "low_rank_v")


def write_packed(directory: Path, model: ModelParts, tables: Mapping[str, QuantizedTable]) -> list[TensorChange]:
    """Write a packed directory into the existing, empty ``directory``; return what became of each part.

    ``tables`` holds what becomes of the embedding and an untied head, in the precision of ``model.info.embedding``.

    Raises: FormatError when the engine could not run such a config; InputError for lack of space or when the
    parts are not the tensors that the config announces.
    """
    info = model.info
    changes = []
    with SafetensorsWriter(directory / WEIGHTS, tensors_of(model)) as writer:
        for part in model.parts:
            written = 0
            for name, array in _arrays(part, info, tables):
                writer.write(name, array)
                written += array.nbytes
            stored = part.stored
            kind = _kind(part, info)
            changes.append(TensorChange(part.name, stored.type_name, stored.num_bytes, kind, written))
    for name, data in model.files.items():
        write_bytes(directory / name, data)
    files = {path.name: sha256(path) for path in sorted(directory.iterdir())}
    write_bytes(directory / CONFIG, config_bytes(replace(model, info=replace(info, files=files))))
    return changes


def tensors_of(model: ModelParts) -> list[TensorInfo]:
    """Return the tensors that a packed directory of this model has.

    Raises: FormatError when the engine could not run such a config, or the parts are not those that it announces.
    """
    place, info = f"{model.place}/{CONFIG}", model.info
    sizes = parse_config(model.config, place)
    wanted = {tensor.name: (tensor, optional) for tensor, optional in packed_tensors(sizes, info)}
    present = {name for part in model.parts for name in _tensor_names(part, info)}
    missing = [name for name, (_, optional) in wanted.items() if name not in present and not optional]
    surplus = sorted(present - wanted.keys())
    if missing or surplus:
        raise FormatError(f"{place}: the model lacks {missing[:2]} or has {surplus[:2]} beyond what its config says")
    return [wanted[name][0] for name in wanted if name in present]


def config_bytes(model: ModelParts) -> bytes:
    """Return the config.json of a packed directory of this model."""
    settings = {key: value for key, value in model.config.items() if key != "wrinklefree"}
    return json_bytes({**settings, "wrinklefree": model.info.to_json()})


def _tensor_names(part: Part, info: PackedInfo) -> Iterator[str]:
    yield f"{part.name}.weight"
    if isinstance(part, NormPart) and part.eps is not None:
        yield f"{part.name}.eps"
    if isinstance(part, TernaryPart):
        yield f"{part.name}.weight_scale"
        if part.bias is not None:
            yield f"{part.name}.bias"
        if part.rank:
            yield from (f"{part.name}.{factor}" for factor in FACTORS)
    elif isinstance(part, TablePart) and info.embedding != "f16":
        yield f"{part.name}.weight_scale"


def _arrays(part: Part, info: PackedInfo, tables: Mapping[str, QuantizedTable]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the tensors of one part as they are written."""
    if isinstance(part, NormPart):
        yield from norm_arrays(part)
    elif isinstance(part, TablePart):
        codes, scales = pack_table(tables[part.name])
        yield f"{part.name}.weight", codes
        if scales is not None:
            yield f"{part.name}.weight_scale", scales
    else:
        ternary, scales = part.codes_and_scales()
        yield f"{part.name}.weight", pack_codes(ternary, info.layout)
        yield from beside_codes(part, scales, info)


def norm_arrays(part: NormPart) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the tensors of a norm."""
    yield f"{part.name}.weight", part.gains
    if part.eps is not None:
        yield f"{part.name}.eps", np.array([part.eps], np.float32)


def beside_codes(
    part: TernaryPart, scales: NDArray[np.float32], info: PackedInfo
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the tensors of a ternary layer but its codes: ``scales`` as they are stored, bias, low-rank factors.

    Raises: InputError for a number beyond float16 where it is stored so.
    """
    grouped = info.granularity == "group"
    yield f"{part.name}.weight_scale", pack_group_scales(_half(scales, part.name)) if grouped else scales
    if part.bias is not None:
        yield f"{part.name}.bias", part.bias
    if part.factors is not None:
        for factor, values in zip(FACTORS, part.factors, strict=True):
            yield f"{part.name}.{factor}", _half(values, f"{part.name}.{factor}")


def _half(values: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise InputError(f"{name}: holds values beyond float16's range (65504)")
    return half


_TABLE_KINDS: Mapping[TableFormat, str] = {
    "q8": "8-bit, F32 scale per row",
    "q6": "6-bit, F16 scale per 64 columns",
    "q4": "4-bit, F16 scale per 32 columns",
    "f16": "F16",
}


def _kind(part: Part, info: PackedInfo) -> str:
    if isinstance(part, NormPart):
        return "F32"
    if isinstance(part, TablePart):
        return _TABLE_KINDS[info.embedding]
    bits, scale = "2" if info.layout == LAYOUT else "1.6", "F16" if info.granularity == "group" else "F32"
    per = f"{info.group_size} columns" if info.granularity == "group" else info.granularity
    return f"{bits}-bit, {scale} scale per {per}" + f", F16 factors of rank {part.rank}" * bool(part.rank)
