"""Writing GGUF: every tensor's type is decided, with its reason, before the first byte is written.

A ternary layer goes into the type that was asked for when its sizes and scales fit exactly, and into another type that
holds it exactly otherwise (`gguf_layers`). What no type or no graph holds is refused, or converted with ``lossy``.
docs/interchange.md has the table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.architectures import BITNET_CPP, LLAMA_CPP, Architecture, architecture_for
from wrinklefree.artifact.gguf.container import GgufWriter
from wrinklefree.artifact.gguf.names import ROPE_FACTORS, permuted_heads, rows_to_gguf, tensor_name
from wrinklefree.artifact.gguf.settings import rope_factors, to_gguf
from wrinklefree.artifact.gguf.table_types import TABLE_TYPES, decode_table, encode_table
from wrinklefree.artifact.gguf.ternary_types import encode
from wrinklefree.artifact.gguf.tokenizer import tokenizer_to_gguf
from wrinklefree.artifact.gguf.types import TYPES, GgufType
from wrinklefree.artifact.origin import GGUF_KEY, origin_of
from wrinklefree.artifact.parts import ModelParts, NormPart, Part, TablePart, TensorChange, TernaryPart
from wrinklefree.errors import InputError, unknown_name
from wrinklefree.export.fit import Conversion, FilePlan, block_scales, refusal, without_factors
from wrinklefree.export.gguf_layers import COLUMNS, LayerType, choose_types, one_scale_each, padding, stored_scales
from wrinklefree.export.hf_model import one_epsilon

TERNARY_TYPES = ("TQ1_0", "TQ2_0", "I2_S")
FALLBACKS = ("q4_0", "q2_0", "q8_0", "f16", "none")
# llama.cpp's names of what most tensors of a file are (llama.h, enum llama_ftype); for display only.
_FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "TQ1_0": 36, "TQ2_0": 37, "I2_S": 40, "Q2_0": 41}


@dataclass(frozen=True)
class GgufOptions:
    """``ternary``: the type of the ternary layers. ``embedding``: that of the embedding and of an untied head.

    ``fallback``: the type of a layer that ``ternary`` cannot hold exactly; none refuses such a model. ``lossy``:
    convert what no type of the format holds.
    """

    ternary: str = "TQ2_0"
    embedding: str = "f16"
    fallback: str = "q4_0"
    lossy: bool = False


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file; ``data`` makes what is written when it is written."""

    name: str
    type: GgufType
    shape: tuple[int, ...]
    data: Callable[[], NDArray[Any]]

    @property
    def num_bytes(self) -> int:
        return self.type.num_bytes(self.shape)


def write_gguf(path: Path, model: ModelParts, options: GgufOptions) -> list[TensorChange]:
    """Write a GGUF file; return what became of each part.

    Raises: InputError, before anything is written, for what the format cannot hold.
    """
    return plan_gguf(model, options).write(path)


def plan_gguf(model: ModelParts, options: GgufOptions) -> FilePlan:
    """Return how a model becomes a GGUF file: types, padding, roundings, and the model as the file holds it.

    Raises: InputError naming the first part that the format cannot hold, and the formats that can.
    """
    _check_options(options)
    architecture = architecture_for(model.config, model.info.subln != "none", f"{model.place}/config.json")
    notes = _notes(model, architecture, options)
    model, conversions = _without_what_has_no_place(model, architecture, options)
    if options.ternary == "I2_S":
        model, merged = one_scale_each(model, "I2_S", options.lossy, COLUMNS["I2_S"])
        conversions += merged
    several = options.ternary == "I2_S" and model.info.granularity != "tensor"  # padding would make it fit, not hold
    may_pad = not several and not any(part.name.endswith("ffn_sub_norm") for part in model.parts)
    types, inner = choose_types(model, options.ternary, options.fallback, may_pad)
    parts: list[Part] = []
    for part in model.parts:
        if isinstance(part, TernaryPart):
            beside = architecture.name == "bitnet"
            part, types[part.name], said = stored_scales(model, part, types[part.name], beside, options.lossy)
        elif isinstance(part, TablePart):
            part, said = _stored_table(model, part, options)
        else:
            said = None
        parts.append(part)
        conversions += [said] if said else []
    fitted = replace(model, parts=tuple(parts))
    written, padded = padding(fitted, inner, options.ternary)
    losses: list[str] = []
    metadata = _metadata(written, types, losses if options.lossy else None)
    conversions += [Conversion("tokenizer", "lossy", loss) for loss in losses]

    def write(path: Path) -> list[TensorChange]:
        return _write(path, written, metadata, architecture, types, options)

    return FilePlan(fitted, written, write, (*conversions, *padded), tuple(notes))


def _check_options(options: GgufOptions) -> None:
    if options.ternary not in TERNARY_TYPES:
        raise unknown_name("ternary type", options.ternary, TERNARY_TYPES)
    if options.embedding not in TABLE_TYPES:
        raise unknown_name("embedding precision of a GGUF file", options.embedding, TABLE_TYPES)
    if options.fallback not in FALLBACKS:
        raise unknown_name("type for what does not fit", options.fallback, FALLBACKS)


def _notes(model: ModelParts, architecture: Architecture, options: GgufOptions) -> list[str]:
    if options.ternary == "I2_S" and BITNET_CPP not in architecture.programs:
        raise InputError(
            f"{model.place}: only {BITNET_CPP} reads I2_S, and it has no architecture {architecture.name}; nothing was "
            "written. gguf-tq1_0 and gguf-tq2_0 hold this model for llama.cpp"
        )
    notes = []
    if options.ternary != "I2_S" and LLAMA_CPP not in architecture.programs:
        notes.append(f"only {', '.join(architecture.programs)} has the architecture {architecture.name}")
    if model.info.dlm is not None:
        notes.append(
            "a diffusion model: programs that read GGUF decode it token by token, not by blocks; what block decoding "
            "needs to know travels in wrinklefree.origin"
        )
    return notes


def _without_what_has_no_place(
    model: ModelParts, architecture: Architecture, options: GgufOptions
) -> tuple[ModelParts, list[Conversion]]:
    """Return a model that a GGUF graph computes: one epsilon, no low-rank corrections.

    A SubLN norm's own epsilon goes into the scales before it (`one_epsilon`), which changes no function.

    Raises: InputError for a bias without a place, and for a low-rank correction unless ``lossy``.
    """
    conversions = []
    for part in model.parts:
        biased = isinstance(part, TernaryPart) and part.bias is not None
        if biased and part.name.rpartition(".")[2] not in architecture.biases:
            raise InputError(
                f"{model.place}: {part.name}: has a bias, and GGUF's {architecture.name} has none there; nothing was "
                "written. Formats that hold it: packed, hf-plain"
            )
        if isinstance(part, TernaryPart) and part.rank:
            what = f"has a low-rank correction of rank {part.rank}, which no GGUF graph computes"
            if not options.lossy:
                raise refusal(model, part.name, what, "packed")
            conversions.append(Conversion(part.name, "lossy", f"{what}: left out"))
        eps = float(model.config["rms_norm_eps"])
        if isinstance(part, NormPart) and part.eps is not None and np.float32(part.eps) != np.float32(eps):
            what = f"epsilon {part.eps:.3g} became {eps:.3g}, the scale before it was multiplied to make up for it"
            conversions.append(Conversion(part.name, "exact", what))
    parts = one_epsilon(model.parts, float(model.config["rms_norm_eps"]))
    return without_factors(replace(model, parts=parts)), conversions


def _stored_table(model: ModelParts, part: TablePart, options: GgufOptions) -> tuple[TablePart, Conversion | None]:
    """Return a table as the file holds it. Raises: InputError when its sizes or values do not fit its type."""
    kind = TYPES[TABLE_TYPES[options.embedding]]
    if part.shape[1] % kind.block_elements:
        raise InputError(
            f"{model.place}: {part.name}: rows of {part.shape[1]} values are no whole number of {kind.name}'s blocks "
            f"of {kind.block_elements}; nothing was written. Give --embedding f16"
        )
    read = part.read

    def stored() -> NDArray[np.float32]:
        return decode_table(kind.name, encode_table(kind.name, read(), part.name), part.shape)

    values = read()
    change = float(np.abs(stored() - values).max())
    if change == 0:
        return replace(part, read=stored, quantized=None), None
    peak = float(np.abs(values).max())
    return replace(part, read=stored, quantized=None), Conversion(
        part.name, "rounded", f"{kind.name}: values changed by {change:.1e} at most, the largest is {peak:.3g}"
    )


def _write(
    path: Path,
    model: ModelParts,
    metadata: dict[str, Any],
    architecture: Architecture,
    types: dict[str, LayerType],
    options: GgufOptions,
) -> list[TensorChange]:
    tensors: list[_Tensor] = []
    changes = []
    for part in model.parts:
        own = _tensors(part, model, architecture, types, options)
        tensors += own
        stored = part.stored
        num_bytes = sum(tensor.num_bytes for tensor in own)
        changes.append(TensorChange(part.name, stored.type_name, stored.num_bytes, own[0].type.name, num_bytes))
    factors = rope_factors(model.config, model.place)
    if factors is not None:
        tensors.append(_Tensor(ROPE_FACTORS, TYPES["F32"], factors.shape, lambda: factors))
    with GgufWriter(path, metadata, [(t.name, t.type, t.shape) for t in tensors]) as writer:
        for tensor in tensors:
            writer.write(tensor.name, tensor.data())
    return changes


def _metadata(model: ModelParts, types: Mapping[str, LayerType], losses: list[str] | None) -> dict[str, Any]:
    _, settings = to_gguf(model.config, model.info.subln != "none", f"{model.place}/config.json")
    return {
        **settings,
        "general.type": "model",
        "general.name": Path(model.place).name,
        "general.file_type": _FILE_TYPES[Counter(layer.type for layer in types.values()).most_common(1)[0][0]],
        "general.quantization_version": 2,
        GGUF_KEY: json.dumps(origin_of(model.info), ensure_ascii=False, allow_nan=False),
        **tokenizer_to_gguf(model.files, model.config, losses),
    }


def _tensors(
    part: Part, model: ModelParts, architecture: Architecture, types: dict[str, LayerType], options: GgufOptions
) -> list[_Tensor]:
    """Return the tensors of one part, its weight first."""
    name = tensor_name(part.name, architecture.name)
    if isinstance(part, NormPart):
        gains = part.gains
        return [_Tensor(f"{name}.weight", TYPES["F32"], gains.shape, lambda: gains)]
    if isinstance(part, TablePart):
        kind, read = TABLE_TYPES[options.embedding], part.read
        return [_Tensor(f"{name}.weight", TYPES[kind], part.shape, lambda: encode_table(kind, read(), part.name))]
    layer, heads = types[part.name], permuted_heads(part.name, model.config, architecture.name)
    group_size = model.info.group_size
    found = [_Tensor(f"{name}.weight", TYPES[layer.type], part.shape, lambda: _codes(part, layer, heads, group_size))]
    if layer.beside is not None:
        beside = np.array([layer.beside], np.float32)
        found.append(_Tensor(f"{name}.scale", TYPES["F32"], (1,), lambda: beside))
    if part.bias is not None:
        bias = rows_to_gguf(part.bias, heads)
        found.append(_Tensor(f"{name}.bias", TYPES["F32"], bias.shape, lambda: bias))
    return found


def _codes(part: TernaryPart, layer: LayerType, heads: int | None, group_size: int) -> NDArray[Any]:
    """Return the bytes of a ternary layer: these codes, these scales, nothing computed anew."""
    codes, scales = part.codes_and_scales()
    codes, scales = rows_to_gguf(codes, heads), rows_to_gguf(scales, heads)
    if layer.beside is not None:
        scales = scales / np.float32(layer.beside)  # exactly 1, or exact because it is a power of two
    if layer.type == "F16":
        return codes.astype(np.float16) * block_scales(scales, part.shape, 1, group_size).astype(np.float16)
    if layer.type == "I2_S":
        scales = scales.reshape(-1)[:1]  # equal, all of them
    elif scales.ndim == 2:
        scales = block_scales(scales, part.shape, TYPES[layer.type].block_elements, group_size)
    return encode(TYPES[layer.type], codes, scales)
