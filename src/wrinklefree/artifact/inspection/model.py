"""What is in a model file or directory, read from headers and tables; no torch, no model is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.config import ModelConfig
from wrinklefree.artifact.gguf.container import is_gguf
from wrinklefree.artifact.inspection.foreign import inspect_bin, inspect_gguf, inspect_hf, stored_rows
from wrinklefree.artifact.inspection.rows import Inspection, TensorRow, scales_text
from wrinklefree.artifact.inspection.tokenizer import tokenizer_of
from wrinklefree.artifact.manifest import TABLES, PackedModel, changed_files, model_format, open_packed, read_config
from wrinklefree.artifact.packing import (
    BLOCKS_PER_FIVE,
    BYTES_PER_FIVE,
    COLUMNS_PER_BLOCK,
    DENSE_LAYOUT,
    ROWS_PER_BLOCK,
    PackedShape,
)
from wrinklefree.artifact.sgl_bin_file import is_bin
from wrinklefree.artifact.tokenizer import read_model_files
from wrinklefree.errors import FormatError, InputError

__all__ = ["Inspection", "TensorRow", "inspect_model", "model_format", "read_config", "share_of_zeros"]

_SHOWN_KEYS = (
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "hidden_act", "tie_word_embeddings", "max_position_embeddings",
    "rms_norm_eps", "rope_parameters", "rope_theta", "rope_scaling",
)  # fmt: skip


def inspect_model(path: str | Path) -> Inspection:
    """Return what is in a packed directory, a checkpoint, a Hugging Face directory, a GGUF or a ``.bin`` file.

    Raises: InputError when there is no such path, FormatError when it is none of these or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: found no such model (a directory, a .gguf or a .bin file is needed)")
    if path.is_file():
        if is_gguf(path):
            return inspect_gguf(path)
        if is_bin(path):
            return inspect_bin(path)
        raise FormatError(f"{path}: is no GGUF and no .bin file; give one of these, or a model's directory")
    config = read_config(path)
    kind = model_format(config)
    if kind == "packed":
        return _inspect_packed(open_packed(path), config)
    if kind == "hf":
        return inspect_hf(path, architecture_of(config))
    ours = config["wrinklefree"]
    granularity, group_size = ours.get("granularity"), ours.get("group_size")
    return Inspection(
        path=path,
        kind=kind,
        architecture=architecture_of(config),
        tensors=tuple(stored_rows(path)),
        training=ours,
        tokenizer=tokenizer_of(read_model_files(path), path, config),
        scales=scales_text(granularity, group_size) if isinstance(granularity, str) else None,
        why_not=f"a checkpoint in training's form; write it first: wf export {path} OUT",
    )


def share_of_zeros(packed: NDArray[np.uint8], shape: PackedShape) -> float:
    """Return the share of zeros among the ternary values of packed codes (`PackedShape.codes`), padding left out."""
    rows = packed.reshape(shape.row_blocks, -1)
    five = shape.column_blocks // BLOCKS_PER_FIVE * BYTES_PER_FIVE if shape.layout == DENSE_LAYOUT else 0
    zeros = 0
    # How often each byte value occurs, times how many of its codes are 1 (the value 0).
    for part, codes in ((rows[:, :five], _five_codes()), (rows[:, five:], _four_codes())):
        zeros += int(np.bincount(part.reshape(-1), minlength=256) @ (codes == 1).sum(axis=0))
    stored = shape.row_blocks * ROWS_PER_BLOCK * shape.column_blocks * COLUMNS_PER_BLOCK
    weights = shape.rows * shape.columns
    return (zeros - (stored - weights)) / weights


def _four_codes() -> NDArray[np.int64]:
    return (np.arange(256) >> np.array([[0], [2], [4], [6]])) & 3


def _five_codes() -> NDArray[np.int64]:
    left, codes = np.arange(256), []
    for _ in range(BLOCKS_PER_FIVE):
        codes.append(3 * left >> 8)
        left = 3 * left & 255
    return np.array(codes)


def _inspect_packed(model: PackedModel, config: dict[str, Any]) -> Inspection:
    linears = model.config.linears(model.info.layout)
    rows = []
    for name, info in model.weights.tensors.items():
        owner, _, kind = name.rpartition(".")
        zeros, type_name, parameters = None, info.dtype, info.num_elements
        if owner in linears and kind == "weight":
            parameters = linears[owner].rows * linears[owner].columns
            type_name = f"ternary {model.info.layout}"
            zeros = share_of_zeros(model.weights.array(name), linears[owner])
        elif owner in TABLES and kind == "weight":
            parameters = model.config.vocab_size * model.config.hidden_size
            type_name = "F16" if model.info.embedding == "f16" else f"table {model.info.embedding}"
        elif kind == "weight_scale":
            parameters = 0  # part of the weight it scales
        rows.append(TensorRow(name, type_name, info.shape, info.num_bytes, parameters, zeros))
    training = {key: value for key, value in config["wrinklefree"].items() if key not in ("files", "low_rank")}
    if ranks := sorted(set(model.info.low_rank.values())):
        training["low_rank"] = f"rank {' and '.join(map(str, ranks))} in {len(model.info.low_rank)} layers"
    return Inspection(
        path=model.directory,
        kind="packed",
        architecture={**architecture_of(config), **_derived(model.config)},
        tensors=tuple(rows),
        training=training,
        tokenizer=tokenizer_of(read_model_files(model.directory), model.directory, config),
        changed_files=tuple(changed_files(model.directory, model.info)),
        scales=scales_text(model.info.granularity, model.info.group_size),
        hashes=model.info.files,
    )


def architecture_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config.json that say what is computed."""
    return {key: config[key] for key in _SHOWN_KEYS if config.get(key) is not None}


def _derived(config: ModelConfig) -> dict[str, Any]:
    return {"head_dim": config.head_dim, "qk_norm": config.has_qk_norm}
