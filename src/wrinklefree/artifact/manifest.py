"""What a packed directory says of itself, checked before anything in it is believed.

`PackedInfo` is the ``wrinklefree`` object of its config.json; `packed_tensors` lists each tensor the directory must
hold, with type and shape; `open_packed` compares that list with the file. docs/formats.md states it in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wrinklefree.artifact.config import Fields, ModelConfig, parse_config
from wrinklefree.artifact.files import read_json, sha256
from wrinklefree.artifact.packing import GRANULARITIES, LAYOUT, LAYOUTS, Granularity, Layout, check_group_size
from wrinklefree.artifact.safetensors_file import SafetensorsFile, TensorInfo
from wrinklefree.artifact.tables import TABLE_FORMATS, TableFormat, TableShape
from wrinklefree.errors import FormatError, InputError
from wrinklefree.version import PACKED_FORMAT_VERSION

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MAX_CONFIG_BYTES = 16 * 1024 * 1024

TABLES = ("model.embed_tokens", "lm_head")
SUBLN = ("identity", "ones", "none")


@dataclass(frozen=True)
class PackedInfo:
    """The ``wrinklefree`` object of a packed directory. ``files`` maps a file's name to its SHA-256.

    ``low_rank`` maps the full names of the ternary layers that have a low-rank correction to its rank.
    """

    granularity: Granularity
    group_size: int
    embedding: TableFormat
    subln: str
    stage: str
    dlm: dict[str, Any] | None = None
    teacher: str | None = None
    calibration: str | None = None
    tokens_seen: int = 0
    recipe_hash: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    low_rank: Mapping[str, int] = field(default_factory=dict)
    layout: Layout = LAYOUT
    format_version: int = PACKED_FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the object as it stands in config.json."""
        return {
            "format": "packed",
            "format_version": self.format_version,
            "layout": self.layout,
            "granularity": self.granularity,
            "group_size": self.group_size,
            "embedding": self.embedding,
            "subln": self.subln,
            "stage": self.stage,
            "dlm": self.dlm,
            "teacher": self.teacher,
            "calibration": self.calibration,
            "tokens_seen": self.tokens_seen,
            "recipe_hash": self.recipe_hash,
            **({"low_rank": dict(self.low_rank)} if self.low_rank else {}),
            "files": dict(self.files),
        }


@dataclass(frozen=True)
class PackedModel:
    """A packed directory whose config.json and tensor table agree."""

    directory: Path
    config: ModelConfig
    info: PackedInfo
    weights: SafetensorsFile


def read_config(directory: str | Path) -> dict[str, Any]:
    """Return the object in a model directory's config.json. Raises: FormatError when there is none."""
    directory = Path(directory)
    if not directory.is_dir():
        raise FormatError(f"{directory}: found no such model directory")
    return read_json(directory / CONFIG, MAX_CONFIG_BYTES)


def model_format(config: Mapping[str, Any]) -> Literal["packed", "checkpoint", "hf"]:
    """Return what kind of model directory a config.json belongs to."""
    ours = config.get("wrinklefree")
    if not isinstance(ours, dict):
        return "hf"
    return "packed" if ours.get("format") == "packed" else "checkpoint"


def read_packed(directory: str | Path) -> tuple[ModelConfig, PackedInfo]:
    """Return the checked config.json of a packed directory.

    Raises: FormatError when it is missing, of another format, layout or version, or a value is out of range.
    """
    raw = read_config(directory)
    place = str(Path(directory) / CONFIG)
    if model_format(raw) != "packed":
        raise FormatError(f"{place}: this is no packed model; make one with `wf export {directory} OUT`")
    config = parse_config(raw, place)
    return config, _packed_info(Fields(raw["wrinklefree"], f"{place}: wrinklefree"), config)


def open_packed(directory: str | Path) -> PackedModel:
    """Return a packed directory after comparing every tensor's name, type and shape with config.json.

    Raises: FormatError naming the first tensor that is missing, unknown, or of another type or shape.
    """
    directory = Path(directory)
    config, info = read_packed(directory)
    weights = SafetensorsFile(directory / WEIGHTS)
    wanted = {tensor.name: (tensor, optional) for tensor, optional in packed_tensors(config, info)}
    for name, (tensor, optional) in wanted.items():
        found = weights.tensors.get(name)
        if found is None and not optional:
            raise FormatError(f"{weights.path}: the tensor {name} is missing; the file is damaged")
        if found is not None and (found.dtype, found.shape) != (tensor.dtype, tensor.shape):
            raise FormatError(
                f"{weights.path}: {name}: found {found.dtype} {list(found.shape)}, "
                f"config.json asks for {tensor.dtype} {list(tensor.shape)}"
            )
    unknown = sorted(weights.tensors.keys() - wanted.keys())
    if unknown:
        raise FormatError(f"{weights.path}: unknown tensor {unknown[0]}")
    return PackedModel(directory, config, info, weights)


def changed_files(directory: str | Path, info: PackedInfo) -> list[str]:
    """Return the names of the files whose SHA-256 is not the recorded one (missing ones included)."""
    paths = {name: Path(directory) / name for name in info.files}
    return [n for n, digest in info.files.items() if not paths[n].is_file() or sha256(paths[n]) != digest]


def packed_tensors(config: ModelConfig, info: PackedInfo) -> Iterator[tuple[TensorInfo, bool]]:
    """Yield each tensor a packed directory holds, and whether it may be absent (biases)."""
    for table in TABLES[: 1 if config.tie_word_embeddings else 2]:
        shape = TableShape(config.vocab_size, config.hidden_size, info.embedding)
        yield TensorInfo(f"{table}.weight", "F16" if shape.scales is None else "U8", shape.codes), False
        if shape.scales is not None:
            yield TensorInfo(f"{table}.weight_scale", "F32" if len(shape.scales) == 1 else "F16", shape.scales), False
    scale_type = "F16" if info.granularity == "group" else "F32"
    for name, packed in config.linears(info.layout).items():
        scales = packed.scales(info.granularity, info.group_size)
        yield TensorInfo(f"{name}.weight", "U8", packed.codes), False
        yield TensorInfo(f"{name}.weight_scale", scale_type, scales), False
        yield TensorInfo(f"{name}.bias", "F32", (packed.rows,)), True
        if rank := info.low_rank.get(name):
            yield TensorInfo(f"{name}.low_rank_u", "F16", (packed.rows, rank)), False
            yield TensorInfo(f"{name}.low_rank_v", "F16", (rank, packed.columns)), False
    for name, size in _norms(config, info.subln):
        yield TensorInfo(f"{name}.weight", "F32", (size,)), False
        if name.endswith("_sub_norm"):
            yield TensorInfo(f"{name}.eps", "F32", (1,)), True


def _norms(config: ModelConfig, subln: str) -> Iterator[tuple[str, int]]:
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm", config.hidden_size
        yield f"{prefix}.post_attention_layernorm", config.hidden_size
        if subln != "none" or config.has_sub_norms:
            yield f"{prefix}.self_attn.attn_sub_norm", config.num_attention_heads * config.head_dim
            yield f"{prefix}.mlp.ffn_sub_norm", config.intermediate_size
        if config.has_sandwich_norms:
            yield f"{prefix}.pre_feedforward_layernorm", config.hidden_size
            yield f"{prefix}.post_feedforward_layernorm", config.hidden_size
        if config.has_qk_norm:
            yield f"{prefix}.self_attn.q_norm", config.head_dim
            yield f"{prefix}.self_attn.k_norm", config.head_dim
    yield "model.norm", config.hidden_size


def _packed_info(fields: Fields, config: ModelConfig) -> PackedInfo:
    version = fields.raw.get("format_version")
    if type(version) is not int or version != PACKED_FORMAT_VERSION:
        raise fields.wrong("format_version", f"this release reads {PACKED_FORMAT_VERSION}; export the model again")
    group_size = fields.size("group_size", 1 << 16)
    try:
        check_group_size(group_size)
    except InputError as error:
        raise FormatError(f"{fields.place}: {error}") from error
    files = fields.object("files") or {}
    if not all(_is_file_hash(name, value) for name, value in files.items()):
        raise fields.wrong("files", "plain file names with their SHA-256 are needed")
    return PackedInfo(
        layout=_layout(fields),
        granularity=fields.choice("granularity", GRANULARITIES),
        group_size=group_size,
        embedding=fields.choice("embedding", TABLE_FORMATS),
        subln=fields.choice("subln", SUBLN),
        stage=fields.text("stage") or "unknown",
        dlm=fields.object("dlm"),
        teacher=fields.text("teacher"),
        calibration=fields.text("calibration"),
        tokens_seen=fields.size("tokens_seen", 1 << 62, default=0, least=0),
        recipe_hash=fields.text("recipe_hash"),
        low_rank=_low_rank(fields, config),
        files=files,
    )


def _low_rank(fields: Fields, config: ModelConfig) -> dict[str, int]:
    ranks = fields.object("low_rank") or {}
    inner, linears = Fields(ranks, f"{fields.place}: low_rank"), config.linears()
    for name in ranks:
        if name not in linears:
            raise inner.wrong(name, "the name of a ternary layer is needed")
        inner.size(name, min(linears[name].rows, linears[name].columns))
    return ranks


def _layout(fields: Fields) -> Layout:
    for layout in LAYOUTS:
        if fields.raw.get("layout") == layout:
            return layout
    raise fields.wrong("layout", f"this release reads {' and '.join(LAYOUTS)}; export the model again")


def _is_file_hash(name: str, value: object) -> bool:
    # A name with a path in it would let a model file point the reader anywhere on the machine.
    plain = name not in ("", ".", "..") and "/" not in name and "\\" not in name
    return plain and isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
