"""Reading a Hugging Face directory as the parts of a ternary model, by what its config.json and its tensors say.

A ternary layer stands in such a directory in one of these ways:

- ``uint8`` and ``weight_scale``: four rows to a byte (`hf_layout`), what BitNet repositories publish;
- floats and ``weight_scale``: ternary values as floats, what transformers saves of such a model once loaded;
- floats alone, where quantization_config says ``online``: latents, ternarised here once, by that rule;
- floats alone otherwise: each must be exactly -s, 0 or s, with one s for the matrix, the row or a group of columns;
- MLX's affine 2 bits (`mlx_layout`), whose values must be exactly that too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.config import ModelConfig, parse_config
from wrinklefree.artifact.floats import FLOAT_TYPES
from wrinklefree.artifact.granularity import Fineness, finest
from wrinklefree.artifact.hf_layout import ROWS_PER_BYTE, Scheme, step_of, ternarize_online, unpack_rows
from wrinklefree.artifact.manifest import CONFIG, TABLES, PackedInfo, model_format, packed_tensors, read_config
from wrinklefree.artifact.origin import HF_KEY, parse_origin
from wrinklefree.artifact.parts import ModelParts, NormPart, Part, Stored, TablePart, TernaryPart
from wrinklefree.artifact.shards import ShardedTensors
from wrinklefree.artifact.tokenizer import read_model_files
from wrinklefree.errors import FormatError

# What old checkpoints store beside their weights; it follows from config.json.
_DERIVED = "rotary_emb.inv_freq"
_DROPPED = ("quantization_config", "quantization", "auto_map", HF_KEY)

_Ternary = tuple[NDArray[np.int8], NDArray[np.float32]]


@dataclass(frozen=True)
class _Layer:
    """A ternary layer as it stands: how fine its scales are, how to get codes and scales, what multiplies its bias."""

    shape: tuple[int, int]
    fineness: Fineness
    read: Callable[[], _Ternary]
    stored: Stored
    bias_factor: NDArray[np.float32] | None = None


def hf_parts(directory: str | Path) -> ModelParts:
    """Return a Hugging Face directory of a ternary model as its parts.

    Packed layers are unpacked when they are asked for; float ones are looked through at once, to find out how fine
    their scales are.

    Raises: FormatError when the directory is damaged, of an architecture that the engine does not run, or a layer is
    not ternary.
    """
    directory = Path(directory)
    raw = read_config(directory)
    place = str(directory / CONFIG)
    if model_format(raw) != "hf":
        raise FormatError(f"{place}: is a model of wrinklefree ({model_format(raw)}), not one of another program")
    source = _Source(place, ShardedTensors(directory), _scheme(raw, place))
    config = {key: value for key, value in raw.items() if key not in _DROPPED}
    config["tie_word_embeddings"] = source.tied(raw.get("tie_word_embeddings"))
    sizes = parse_config(config, place)
    layers = {name: source.layer(name, packed.rows, packed.columns) for name, packed in sizes.linears().items()}
    fineness = finest(layer.fineness for layer in layers.values())
    origin = parse_origin(raw.get(HF_KEY), f"{place}: {HF_KEY}")
    info = replace(origin.info(fineness.granularity, fineness.group_size, "q8"), subln="none")
    parts = tuple(_parts(source, sizes, info, layers, fineness))
    source.check_nothing_left()
    return ModelParts(str(directory), config, info, parts, read_model_files(directory))


def _scheme(raw: Mapping[str, Any], place: str) -> Scheme | None:
    """What config.json says of its layers, None where they are plain floats."""
    settings = raw.get("quantization_config")
    if settings is None:
        return None
    inner = f"{place}: quantization_config"
    if not isinstance(settings, dict):
        raise FormatError(f"{inner}: found a JSON {type(settings).__name__}, an object is needed")
    if settings.get("quant_method") != "bitnet":
        raise FormatError(f"{inner}: quant_method: found {settings.get('quant_method')!r:.80}, only bitnet is ternary")
    return Scheme.of(settings, inner)


@dataclass
class _Source:
    """The tensors of a directory; which of them were asked for is kept, so that none is left out in silence."""

    place: str
    tensors: ShardedTensors
    scheme: Scheme | None
    used: set[str] = field(default_factory=set)

    def floats(self, name: str, *shape: int) -> NDArray[np.float32]:
        self.used.add(name)
        return self.tensors.floats(name, shape)

    def stored(self, owner: str) -> Stored:
        found = [info for kind in _KINDS if (info := self.tensors.info(f"{owner}.{kind}")) is not None]
        return Stored(found[0].dtype, sum(info.num_bytes for info in found)) if found else Stored()

    def tied(self, said: object) -> bool:
        """Whether embedding and head are one table; a config that does not say is decided by the tensors."""
        has_head = "lm_head.weight" in self.tensors.names
        if said is None:
            return not has_head
        if said and has_head:
            head, embedding = (self.tensors.array(f"{name}.weight") for name in ("lm_head", "model.embed_tokens"))
            if not np.array_equal(head, embedding):
                raise FormatError(f"{self.place}: tie_word_embeddings is true, but lm_head is not the embedding")
            self.used.add("lm_head.weight")
        return bool(said)

    def layer(self, name: str, rows: int, columns: int) -> _Layer:
        """Return a ternary layer in whichever way it stands."""
        weight, scale = f"{name}.weight", f"{name}.weight_scale"
        info = self.tensors.info(weight)
        if info is None:
            raise FormatError(f"{self.tensors.directory}: the tensor {weight} is missing")
        self.used |= {weight, scale} & self.tensors.names
        if info.dtype != "U8" and scale not in self.tensors.names:
            return self._float_layer(name, rows, columns)
        if self.scheme is None:
            raise FormatError(f"{self.place}: quantization_config is missing, but {weight} has a scale or is packed")
        packed = info.dtype == "U8"
        shape = (rows // ROWS_PER_BYTE, columns) if packed and rows % ROWS_PER_BYTE == 0 else (rows, columns)
        if info.shape != shape or not (packed or info.dtype in FLOAT_TYPES):
            raise FormatError(
                f"{self.tensors.place(weight)}: found {info.dtype} {list(info.shape)}, a ternary matrix {rows} x "
                f"{columns} is U8 {[rows // ROWS_PER_BYTE, columns]} or floats {[rows, columns]}"
            )
        step = self._step(scale, rows)
        read = self._packed_codes if packed else self._float_codes
        fineness = Fineness("tensor" if step.size == 1 else "row")
        bias_factor = None if self.scheme.divide else step
        return _Layer((rows, columns), fineness, lambda: (read(weight), step), self.stored(name), bias_factor)

    def _step(self, name: str, rows: int) -> NDArray[np.float32]:
        info = self.tensors.info(name)
        if info is None:
            raise FormatError(f"{self.tensors.directory}: the tensor {name} is missing, its matrix is packed")
        if info.shape not in ((), (1,), (1, 1), (rows,), (rows, 1)):
            raise FormatError(f"{self.tensors.place(name)}: found shape {list(info.shape)}, one number is needed")
        assert self.scheme is not None
        try:
            return step_of(self.tensors.floats(name).reshape(-1), self.scheme.divide)
        except FormatError as error:
            raise FormatError(f"{self.tensors.place(name)}: {error}") from error

    def _packed_codes(self, weight: str) -> NDArray[np.int8]:
        try:
            return unpack_rows(self.tensors.array(weight))
        except FormatError as error:
            raise FormatError(f"{self.tensors.place(weight)}: {error}") from error

    def _float_codes(self, weight: str) -> NDArray[np.int8]:
        values = self.tensors.floats(weight)
        codes = values.clip(-1, 1).astype(np.int8)
        if not np.array_equal(codes, values):
            raise FormatError(f"{self.tensors.place(weight)}: has a weight_scale, but holds other values than -1, 0, 1")
        return codes

    def _float_layer(self, name: str, rows: int, columns: int) -> _Layer:
        weight = f"{name}.weight"
        if self.scheme is not None and self.scheme.online and not self.scheme.keeps(name):
            dtype = self.tensors.float_type(weight)
            shape = rows, columns
            return _Layer(
                shape,
                Fineness(),
                lambda: ternarize_online(self.tensors.floats(weight, shape), dtype),
                self.stored(name),
            )
        raise FormatError(f"{self.tensors.place(weight)}: is not ternary")

    def check_nothing_left(self) -> None:
        """Raise FormatError when a tensor was not asked for: the model would not be what the file says."""
        left = sorted(name for name in self.tensors.names - self.used if not name.endswith(_DERIVED))
        if left:
            raise FormatError(f"{self.tensors.place(left[0])}: is a tensor that {self.place} gives no place")


_KINDS = ("weight", "weight_scale", "bias", "scales", "biases")


def _parts(
    source: _Source, sizes: ModelConfig, info: PackedInfo, layers: Mapping[str, _Layer], fineness: Fineness
) -> Iterator[Part]:
    """Yield the parts that a model of these sizes has."""
    gain_offset = np.float32(1 if sizes.model_type.startswith("gemma") else 0)
    for tensor, _ in packed_tensors(sizes, replace(info, embedding="f16")):
        owner, _, kind = tensor.name.rpartition(".")
        if kind != "weight":
            continue
        if owner in layers:
            yield _ternary(source, owner, layers[owner], fineness)
        elif owner in TABLES:
            yield _table(source, owner, tensor.shape)
        else:
            gains = source.floats(tensor.name, *tensor.shape)
            yield NormPart(owner, gains + gain_offset if gain_offset else gains, stored=source.stored(owner))


def _ternary(source: _Source, name: str, layer: _Layer, fineness: Fineness) -> TernaryPart:
    def read() -> _Ternary:
        codes, scales = layer.read()
        return codes, fineness.spread(scales, *layer.shape, layer.fineness)

    bias = source.floats(f"{name}.bias", layer.shape[0]) if f"{name}.bias" in source.tensors.names else None
    if bias is not None and layer.bias_factor is not None:
        bias = bias * layer.bias_factor
    return TernaryPart(name, layer.shape, read, bias, stored=layer.stored)


def _table(source: _Source, name: str, shape: tuple[int, ...]) -> TablePart:
    rows, columns = shape
    weight = f"{name}.weight"
    info = source.tensors.info(weight)
    if info is None or info.shape != shape or info.dtype not in FLOAT_TYPES:
        found = "nothing" if info is None else f"{info.dtype} {list(info.shape)}"
        raise FormatError(f"{source.tensors.directory}: {weight}: found {found}, floats {list(shape)} are needed")
    source.used.add(weight)
    return TablePart(name, (rows, columns), lambda: source.tensors.floats(weight, shape), source.stored(name))
