"""Reading a packed directory as the parts of a model; codes and tables are unpacked when they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.files import sha256
from wrinklefree.artifact.manifest import TABLES, WEIGHTS, PackedModel, open_packed, read_config
from wrinklefree.artifact.packed_writer import FACTORS
from wrinklefree.artifact.packing import unpack_codes, unpack_group_scales
from wrinklefree.artifact.parts import ModelParts, NormPart, Part, Stored, TablePart, TernaryPart
from wrinklefree.artifact.tables import QuantizedTable, unpack_table
from wrinklefree.artifact.tokenizer import read_model_files
from wrinklefree.errors import FormatError


def packed_parts(directory: str | Path) -> ModelParts:
    """Return a packed model as its parts, a view of its file: nothing big is read before a part is asked for.

    ``write_packed`` of the result, with the tables of ``stored_tables``, writes the same bytes again.

    Raises: FormatError when the directory is damaged, its weights have another SHA-256 than config.json says included.
    """
    directory = Path(directory)
    model = open_packed(directory)
    recorded = model.info.files.get(WEIGHTS)
    if recorded is not None and sha256(model.weights.path) != recorded:
        raise FormatError(
            f"{model.weights.path}: the SHA-256 is not the one in config.json; the file was damaged or exchanged, "
            "get the model again"
        )
    raw = read_config(directory)
    settings = {key: value for key, value in raw.items() if key != "wrinklefree"}
    return ModelParts(str(directory), settings, model.info, tuple(_parts(model)), read_model_files(directory))


def _parts(model: PackedModel) -> list[Part]:
    """The tables, layers and norms in the order of the manifest."""
    parts: list[Part] = [_table(model, name) for name in TABLES if f"{name}.weight" in model.weights.tensors]
    linears = model.config.linears(model.info.layout)
    parts += [_linear(model, name, packed.rows, packed.columns) for name, packed in linears.items()]
    known = {part.name for part in parts}
    for name in model.weights.tensors:
        owner, _, kind = name.rpartition(".")
        if kind == "weight" and owner not in known:
            eps = _optional(model, f"{owner}.eps")
            gains = model.weights.array(name)
            parts.append(NormPart(owner, gains, None if eps is None else float(eps[0]), _stored(model, owner)))
    return parts


def _table(model: PackedModel, name: str) -> TablePart:
    rows, columns = model.config.vocab_size, model.config.hidden_size

    def stored() -> QuantizedTable:
        codes, scales = model.weights.array(f"{name}.weight"), _optional(model, f"{name}.weight_scale")
        return unpack_table(codes, scales, rows, columns, model.info.embedding)

    return TablePart(name, (rows, columns), lambda: stored().values(), _stored(model, name), quantized=stored)


def _linear(model: PackedModel, name: str, rows: int, columns: int) -> TernaryPart:
    info, weights = model.info, model.weights

    def read() -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        try:
            codes = unpack_codes(weights.array(f"{name}.weight"), rows, columns, info.layout)
        except FormatError as error:
            raise FormatError(f"{weights.path}: {name}: {error}") from error
        scales = weights.array(f"{name}.weight_scale")
        return codes, (unpack_group_scales(scales, rows) if info.granularity == "group" else scales).astype(np.float32)

    factors = None
    if name in info.low_rank:
        u, v = (weights.array(f"{name}.{factor}").astype(np.float32) for factor in FACTORS)
        factors = u, v
    bias = _optional(model, f"{name}.bias")
    return TernaryPart(name, (rows, columns), read, bias, factors, _stored(model, name))


def _optional(model: PackedModel, name: str) -> NDArray[np.float32] | None:
    return model.weights.array(name) if name in model.weights.tensors else None


def _stored(model: PackedModel, part: str) -> Stored:
    suffixes = ("weight", "weight_scale", "bias", "eps", *FACTORS)
    found = [model.weights.tensors[n] for s in suffixes if (n := f"{part}.{s}") in model.weights.tensors]
    return Stored(found[0].dtype, sum(tensor.num_bytes for tensor in found))
