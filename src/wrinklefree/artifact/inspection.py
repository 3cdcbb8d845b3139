"""What is in a model file or directory, read from headers and tables; no torch, no model is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.config import ModelConfig
from wrinklefree.artifact.files import read_json
from wrinklefree.artifact.gguf.container import GgufFile, is_gguf, read_gguf
from wrinklefree.artifact.manifest import (
    TABLES,
    WEIGHTS,
    PackedModel,
    changed_files,
    model_format,
    open_packed,
    read_config,
)
from wrinklefree.artifact.packing import (
    BLOCKS_PER_FIVE,
    BYTES_PER_FIVE,
    COLUMNS_PER_BLOCK,
    DENSE_LAYOUT,
    ROWS_PER_BLOCK,
    PackedShape,
)
from wrinklefree.artifact.safetensors_file import SafetensorsFile
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.errors import FormatError, InputError

INDEX = "model.safetensors.index.json"
# Metadata arrays longer than this are described, not listed.
_MAX_LISTED = 16
_SHOWN_KEYS = (
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "hidden_act", "tie_word_embeddings", "max_position_embeddings",
    "rms_norm_eps", "rope_parameters", "rope_theta", "rope_scaling",
)  # fmt: skip


@dataclass(frozen=True)
class TensorRow:
    """One tensor: its name, stored type, sizes, bytes, and the share of zeros among its ternary values."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    num_bytes: int
    num_parameters: int
    zeros: float | None = None


@dataclass(frozen=True)
class Inspection:
    """Everything `wf inspect` shows. ``kind`` is packed, checkpoint, hf or gguf."""

    path: Path
    kind: str
    architecture: Mapping[str, Any]
    tensors: tuple[TensorRow, ...]
    training: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    changed_files: tuple[str, ...] | None = None

    @property
    def num_parameters(self) -> int:
        return sum(row.num_parameters for row in self.tensors)

    @property
    def num_bytes(self) -> int:
        return sum(row.num_bytes for row in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.num_bytes / max(1, self.num_parameters)

    @property
    def zeros(self) -> float | None:
        """The share of zeros among all ternary values, or None when nothing is known to be ternary."""
        counted = [row for row in self.tensors if row.zeros is not None]
        weights = sum(row.num_parameters for row in counted)
        return sum((row.zeros or 0.0) * row.num_parameters for row in counted) / weights if weights else None

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "architecture": dict(self.architecture),
            "num_parameters": self.num_parameters,
            "num_bytes": self.num_bytes,
            "bits_per_weight": self.bits_per_weight,
            "zeros": self.zeros,
            "training": dict(self.training),
            "tokenizer": dict(self.tokenizer),
            "changed_files": None if self.changed_files is None else list(self.changed_files),
            "tensors": [
                {
                    "name": row.name,
                    "type": row.type_name,
                    "shape": list(row.shape),
                    "bytes": row.num_bytes,
                    "zeros": row.zeros,
                }
                for row in self.tensors
            ],
        }


def inspect_model(path: str | Path) -> Inspection:
    """Return what is in a packed directory, a checkpoint, a Hugging Face directory or a GGUF file.

    Raises: InputError when there is no such path, FormatError when it is none of these or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: found no such model (a directory or a .gguf file is needed)")
    if path.is_file():
        if not is_gguf(path):
            raise FormatError(f"{path}: is no GGUF file; give a model's directory")
        return _inspect_gguf(read_gguf(path))
    config = read_config(path)
    kind = model_format(config)
    if kind == "packed":
        return _inspect_packed(open_packed(path), config)
    return Inspection(
        path=path,
        kind=kind,
        architecture=_architecture(config),
        tensors=tuple(_file_rows(path)),
        training=config.get("wrinklefree") or {},
        tokenizer=_tokenizer(path),
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
        architecture={**_architecture(config), **_derived(model.config)},
        tensors=tuple(rows),
        training=training,
        tokenizer=_tokenizer(model.directory),
        changed_files=tuple(changed_files(model.directory, model.info)),
    )


def _inspect_gguf(file: GgufFile) -> Inspection:
    own: dict[str, Any] = {}
    tokenizer: dict[str, Any] = {}
    for key in file.metadata:
        (tokenizer if key.startswith("tokenizer.") else own)[key] = _listed(file, key)
    rows = tuple(
        TensorRow(t.name, t.type_name, t.shape, t.num_bytes, math.prod(t.shape)) for t in file.tensors.values()
    )
    return Inspection(file.path, "gguf", own, rows, tokenizer=tokenizer)


def _listed(file: GgufFile, key: str) -> Any:
    """A value as JSON can hold it: arrays that are long (vocabularies, merges) are described, not listed."""
    length = file.metadata.length(key)
    if length is not None and length > _MAX_LISTED:
        return f"[{length} values]"
    value = file.metadata[key]
    return value.tolist() if isinstance(value, np.ndarray) else _shortened(value)


def _file_rows(directory: Path) -> list[TensorRow]:
    """The tensors of one safetensors file, or of all the files an index names."""
    names = [WEIGHTS]
    if (directory / INDEX).exists():
        listed = read_json(directory / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(_plain_name(name) for name in listed.values()):
            raise FormatError(f"{directory / INDEX}: weight_map: plain file names are needed")
        names = sorted(set(listed.values()))
    files = [SafetensorsFile(directory / name) for name in names]
    return [
        TensorRow(info.name, info.dtype, info.shape, info.num_bytes, info.num_elements)
        for file in files
        for info in file.tensors.values()
    ]


def _plain_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\\" not in name


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in _SHOWN_KEYS if config.get(key) is not None}


def _derived(config: ModelConfig) -> dict[str, Any]:
    return {"head_dim": config.head_dim, "qk_norm": config.has_qk_norm}


def _tokenizer(directory: Path) -> dict[str, Any]:
    if not (directory / "tokenizer.json").exists():
        return {}
    tokenizer = Tokenizer.load(directory)
    return {
        "vocab_size": tokenizer.vocab_size,
        "bos": _named(tokenizer, tokenizer.bos_id),
        "eos": [_named(tokenizer, token) for token in tokenizer.eos_ids],
        "adds_bos": tokenizer.adds_bos,
        "chat_template": tokenizer.chat_template is not None,
    }


def _named(tokenizer: Tokenizer, token: int | None) -> str | None:
    return None if token is None else f"{tokenizer.token_text(token)} ({token})"


def _shortened(value: Any) -> Any:
    return value[:60] + "..." if isinstance(value, str) and len(value) > 60 else value
