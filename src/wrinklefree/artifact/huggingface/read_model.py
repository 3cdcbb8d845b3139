"""Reading a Hugging Face directory as the parts of a ternary model, by what its config.json and its tensors say.

A ternary layer stands in such a directory in one of these ways:

- ``uint8`` and ``weight_scale``: four rows to a byte (`bitnet_layout`), what BitNet repositories publish;
- floats and ``weight_scale``: ternary values as floats, what transformers saved of a loaded model at times;
- floats alone, where quantization_config says ``online``: latents, ternarised here once, by that rule;
- floats alone otherwise: each must be exactly -s, 0 or s, with one s for the matrix, the row or a group of columns;
- MLX's affine bits (`mlx_layout`), whose values must be exactly that too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.config import ModelConfig, parse_config
from wrinklefree.artifact.huggingface.shards import ShardedTensors
from wrinklefree.artifact.huggingface.source import HfLayer, HfSource
from wrinklefree.artifact.manifest import CONFIG, TABLES, PackedInfo, model_format, packed_tensors, read_config
from wrinklefree.artifact.origin import HF_KEY, parse_origin
from wrinklefree.artifact.parts import ModelParts, NormPart, Part, TablePart, TernaryPart
from wrinklefree.artifact.tables import QuantizedTable, TableFormat
from wrinklefree.artifact.ternary_values import Grain, common_grain, exact_ternary, regroup
from wrinklefree.artifact.tokenizer import read_model_files
from wrinklefree.errors import FormatError

# Of no use once the tensors are read; auto_map names code, which is never run.
_DROPPED = ("quantization_config", "quantization", "auto_map", HF_KEY)
# Our format of a table that is ternary itself, with a scale for as many columns.
_TERNARY_TABLE: TableFormat = "q4"
_TERNARY_TABLE_COLUMNS = 32
# Rows of a table that are looked at before all of it is.
_LOOK_ROWS = 16


def hf_parts(directory: str | Path) -> ModelParts:
    """Return a Hugging Face directory of a ternary model as its parts.

    Packed layers are unpacked when they are asked for; float ones are looked through at once, to find out how fine
    their scales are. The granularity is the coarsest that holds every layer exactly.

    Raises: FormatError when the directory is damaged, of an architecture that the engine does not run, or a layer is
    not ternary.
    """
    directory = Path(directory)
    raw = read_config(directory)
    place = str(directory / CONFIG)
    if model_format(raw) != "hf":
        raise FormatError(f"{place}: is a model of wrinklefree ({model_format(raw)}), not one of another program")
    source = HfSource.of(raw, ShardedTensors(directory), place)
    config = {key: value for key, value in raw.items() if key not in _DROPPED}
    config["tie_word_embeddings"] = source.is_tied(raw.get("tie_word_embeddings"))
    sizes = parse_config(config, place)
    layers = {name: source.layer(name, packed.rows, packed.columns) for name, packed in sizes.linears().items()}
    try:
        grain = common_grain((name, layer.scales, layer.shape) for name, layer in layers.items())
    except FormatError as error:
        raise FormatError(f"{directory}: {error}") from error
    origin = parse_origin(raw.get(HF_KEY), f"{place}: {HF_KEY}")
    info = replace(origin.info(grain.granularity, grain.group_size or 64, "q8"), subln="none")
    parts = tuple(_parts(source, sizes, info, layers, grain))
    if all(part.quantized is not None for part in parts if isinstance(part, TablePart)):
        info = replace(info, embedding=_TERNARY_TABLE)
    source.check_nothing_left()
    return ModelParts(str(directory), config, info, parts, read_model_files(directory))


def _parts(
    source: HfSource, sizes: ModelConfig, info: PackedInfo, layers: Mapping[str, HfLayer], grain: Grain
) -> Iterator[Part]:
    """Yield the parts that a model of these sizes has."""
    gain_offset = np.float32(1 if sizes.model_type.startswith("gemma") else 0)
    for tensor, _ in packed_tensors(sizes, replace(info, embedding="f16")):
        owner, _, kind = tensor.name.rpartition(".")
        if kind != "weight":
            continue
        if owner in layers:
            yield _ternary(source, owner, layers[owner], grain)
        elif owner in TABLES:
            yield _table(source, owner, (sizes.vocab_size, sizes.hidden_size))
        else:
            gains = source.floats(tensor.name, *tensor.shape)
            yield NormPart(owner, gains + gain_offset if gain_offset else gains, stored=source.stored(owner))


def _ternary(source: HfSource, name: str, layer: HfLayer, grain: Grain) -> TernaryPart:
    scales = regroup(layer.scales, layer.shape, grain)
    assert scales is not None
    bias = source.floats(f"{name}.bias", layer.shape[0]) if f"{name}.bias" in source.tensors.names else None
    if bias is not None and layer.bias_factor is not None:
        bias = bias * layer.bias_factor
    return TernaryPart(name, layer.shape, lambda: (layer.codes(), scales), bias, stored=layer.stored)


def _table(source: HfSource, name: str, shape: tuple[int, int]) -> TablePart:
    """The embedding or head; one that is ternary with float16 scales is held by our 4 bits exactly."""
    if source.tensors.info(f"{name}.weight") is None:
        raise FormatError(f"{source.tensors.directory}: the tensor {name}.weight is missing")

    def read() -> NDArray[np.float32]:
        return source.values(name, shape)

    def quantized() -> QuantizedTable:
        table = _ternary_table(read())
        assert table is not None
        return table

    first = source.values(name, shape, slice(0, _LOOK_ROWS))
    ternary = exact_ternary(first) is not None and _ternary_table(read()) is not None
    return TablePart(name, shape, read, source.stored(name), quantized if ternary else None)


def _ternary_table(values: NDArray[np.float32]) -> QuantizedTable | None:
    """Return a ternary table with numbers -1, 0, 1 and float16 scales, or None when it is not exactly that."""
    found = exact_ternary(values)
    if found is None:
        return None
    codes, scales = found
    groups = -(-codes.shape[1] // _TERNARY_TABLE_COLUMNS)
    with np.errstate(over="ignore"):
        half = np.repeat(scales, -(-groups // scales.shape[1]), axis=1).astype(np.float16)
    table = QuantizedTable(_TERNARY_TABLE, codes, half)
    return table if np.array_equal(table.values(), values) else None
