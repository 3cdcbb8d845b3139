"""The packed directory: ternary codes of 2 or 1.6 bits, scales, float32 norms, tables in 8, 6 or 4 bits or float16.

`artifact/packing.py` says what the bytes of a layer mean, `artifact/tables.py` those of a table,
`artifact/manifest.py` which tensors there are; docs/formats.md states all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.config import parse_config
from wrinklefree.artifact.files import json_bytes, sha256, space_errors, write_bytes
from wrinklefree.artifact.manifest import CONFIG, WEIGHTS, PackedInfo, packed_tensors
from wrinklefree.artifact.packing import LAYOUT, pack_codes, pack_group_scales
from wrinklefree.artifact.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorInfo
from wrinklefree.artifact.tables import QuantizedTable, TableFormat, pack_table
from wrinklefree.artifact.tokenizer import TOKENIZER_FILES
from wrinklefree.errors import FormatError, InputError
from wrinklefree.export.walk import Entry, Norm, Table, TernaryLayer
from wrinklefree.quant.low_rank import FACTORS

COPIED_FILES = (*TOKENIZER_FILES, "generation_config.json")


@dataclass(frozen=True)
class TensorChange:
    """What became of one part of the model: its type before and after, and what each costs in bytes."""

    name: str
    source_type: str
    source_bytes: int
    written_type: str
    written_bytes: int


def write_packed(
    directory: Path,
    source: Path,
    config: Mapping[str, Any],
    info: PackedInfo,
    entries: Iterable[Entry],
    tables: Mapping[str, QuantizedTable],
) -> list[TensorChange]:
    """Write a packed directory into the existing, empty ``directory``; return what became of each part.

    ``source`` is the checkpoint the entries come from: its tokenizer and generation settings are copied byte for
    byte, its file says what each tensor cost there; ``config`` is its config.json; ``tables`` holds what becomes of
    the embedding and an untied head.

    Raises: FormatError when the engine could not run such a config; InputError for lack of space or when the
    entries are not the tensors that the config announces.
    """
    place = f"{source}/{CONFIG}"
    sizes = parse_config(config, place)
    wanted = {tensor.name: (tensor, optional) for tensor, optional in packed_tensors(sizes, info)}
    parts = list(entries)
    present = {name for entry in parts for name in _tensor_names(entry, info)}
    missing = [name for name, (_, optional) in wanted.items() if name not in present and not optional]
    surplus = sorted(present - wanted.keys())
    if missing or surplus:
        raise FormatError(f"{place}: the model lacks {missing[:2]} or has {surplus[:2]} beyond what its config says")
    stored = SafetensorsFile(source / WEIGHTS).tensors
    changes = []
    with SafetensorsWriter(directory / WEIGHTS, [wanted[n][0] for n in wanted if n in present]) as writer:
        for entry in parts:
            written = 0
            for name, array in _arrays(entry, info, tables):
                writer.write(name, array)
                written += array.nbytes
            changes.append(_change(entry, info, stored, written))
    _copy_files(source, directory)
    files = {path.name: sha256(path) for path in sorted(directory.iterdir())}
    settings = {key: value for key, value in config.items() if key != "wrinklefree"}
    whole = {**settings, "wrinklefree": replace(info, files=files).to_json()}
    write_bytes(directory / CONFIG, json_bytes(whole))
    return changes


def _tensor_names(entry: Entry, info: PackedInfo) -> Iterator[str]:
    yield f"{entry.name}.weight"
    if isinstance(entry, Norm) and entry.eps is not None:
        yield f"{entry.name}.eps"
    if isinstance(entry, TernaryLayer):
        yield f"{entry.name}.weight_scale"
        if entry.layer.bias is not None:
            yield f"{entry.name}.bias"
        if entry.rank:
            yield from (f"{entry.name}.{factor}" for factor in FACTORS)
    elif isinstance(entry, Table) and info.embedding != "f16":
        yield f"{entry.name}.weight_scale"


def _arrays(entry: Entry, info: PackedInfo, tables: Mapping[str, QuantizedTable]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the tensors of one part as they are written."""
    if isinstance(entry, Norm):
        yield f"{entry.name}.weight", entry.values()
        if entry.eps is not None:
            yield f"{entry.name}.eps", entry.eps.detach().float().cpu().numpy()
    elif isinstance(entry, Table):
        codes, scales = pack_table(tables[entry.name])
        yield f"{entry.name}.weight", codes
        if scales is not None:
            yield f"{entry.name}.weight_scale", scales
    else:
        ternary, fitted = entry.codes_and_scales()
        yield f"{entry.name}.weight", pack_codes(ternary, info.layout)
        grouped = info.granularity == "group"
        yield f"{entry.name}.weight_scale", pack_group_scales(_half(fitted, entry.name)) if grouped else fitted
        bias = entry.bias()
        if bias is not None:
            yield f"{entry.name}.bias", bias
        if entry.rank:
            for factor, values in zip(FACTORS, entry.factors(), strict=True):
                yield f"{entry.name}.{factor}", _half(values, f"{entry.name}.{factor}")


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
_PARTS = ("weight", "weight_scale", "bias", "eps", *FACTORS)


def _change(entry: Entry, info: PackedInfo, stored: Mapping[str, TensorInfo], written_bytes: int) -> TensorChange:
    before = [stored[name] for part in _PARTS if (name := f"{entry.name}.{part}") in stored]
    if isinstance(entry, TernaryLayer):
        bits, scale = "2" if info.layout == LAYOUT else "1.6", "F16" if info.granularity == "group" else "F32"
        kind = f"{bits}-bit, {scale} scale per {_per(info)}" + (
            f", F16 factors of rank {entry.rank}" * bool(entry.rank)
        )
    elif isinstance(entry, Norm):
        kind = "F32"
    else:
        kind = _TABLE_KINDS[info.embedding]
    return TensorChange(entry.name, before[0].dtype, sum(t.num_bytes for t in before), kind, written_bytes)


def _per(info: PackedInfo) -> str:
    return f"{info.group_size} columns" if info.granularity == "group" else info.granularity


def _copy_files(source: Path, directory: Path) -> None:
    for name in COPIED_FILES:
        if (source / name).is_file():
            with space_errors(directory / name):
                (directory / name).write_bytes((source / name).read_bytes())
