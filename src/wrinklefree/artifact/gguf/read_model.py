"""A GGUF file of ternary layers as the parts of a model, in Hugging Face's names and order of rows.

Everything that decides what a layer computes is in the file: the type's codes and scales, or plain numbers that are
ternary exactly, and a ``.scale`` beside them. What is not ternary is refused with what to do instead. `open_model` says
what a file of one of our architectures holds, ternary or not.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.config import ModelConfig, parse_config
from wrinklefree.artifact.gguf.architectures import ARCHITECTURES
from wrinklefree.artifact.gguf.container import GgufFile, GgufTensor, is_gguf, read_gguf
from wrinklefree.artifact.gguf.names import ROPE_FACTORS, permuted_heads, rows_from_gguf, tensor_name
from wrinklefree.artifact.gguf.settings import from_gguf, known_architecture
from wrinklefree.artifact.gguf.ternary_types import FLOATS, TERNARY_TYPES, decode, has_plain_scales, scales_of
from wrinklefree.artifact.gguf.tokenizer import tokenizer_from_gguf
from wrinklefree.artifact.gguf.types import dequantize
from wrinklefree.artifact.manifest import TABLES, packed_tensors
from wrinklefree.artifact.origin import GGUF_KEY, Origin, parse_origin
from wrinklefree.artifact.parts import CodeRows, ModelParts, NormPart, Part, Stored, StoredCodes, TablePart, TernaryPart
from wrinklefree.artifact.tables import TableFormat
from wrinklefree.artifact.ternary_values import common_grain, exact_ternary, regroup
from wrinklefree.errors import FormatError

# A float16 table up to this size is kept as it is; a larger one would take too much of the time of every token.
EXACT_TABLE_BYTES = 128 * 1024 * 1024
# Keys of PrismML's fork: inputs go through a Hadamard transform before such weights (llama.cpp's issue 29058).
_ROTATED = "prism.hadamard"


@dataclass(frozen=True)
class GgufModel:
    """A file of one of our architectures whose tensors are those that its settings announce.

    ``tensors`` maps the names of modules to the shapes of their weights, tables, layers and norms in this order.
    """

    file: GgufFile
    config: dict[str, Any]
    sizes: ModelConfig
    origin: Origin
    tensors: Mapping[str, tuple[int, ...]]

    def tensor(self, module: str, suffix: str = "weight") -> GgufTensor | None:
        """Return a module's tensor, None when there is none of this suffix."""
        return self.file.tensors.get(tensor_name(f"{module}.{suffix}", self.file.architecture))

    def heads(self, module: str) -> int | None:
        """Return the heads whose rows stand in another order (`names.rows_from_gguf`), else None."""
        return permuted_heads(module, self.config, self.file.architecture)

    def values(self, module: str, suffix: str = "weight") -> NDArray[np.float32]:
        """Return a tensor's numbers float32 in Hugging Face's order of rows, a ``.scale`` not multiplied in.

        Raises: FormatError when the type cannot be turned into numbers, or one of them is not finite.
        """
        tensor = self.tensor(module, suffix)
        assert tensor is not None
        try:
            found = dequantize(tensor.type, self.file.data(tensor.name), tensor.shape)
        except FormatError as error:
            raise FormatError(f"{self.file.path}: {tensor.name}: {error}") from error
        if not np.isfinite(found).all():
            raise FormatError(f"{self.file.path}: {tensor.name}: holds a value that is no finite number")
        return rows_from_gguf(found, self.heads(module)) if module.endswith("_proj") else found

    def table_rows(self, module: str, begin: int, end: int) -> NDArray[np.float32]:
        """Return some rows of `values` of the embedding or head."""
        tensor = self.tensor(module)
        assert tensor is not None and module in TABLES
        row = tensor.num_bytes // tensor.shape[0]
        data = self.file.data(tensor.name)[begin * row : end * row]
        try:
            found = dequantize(tensor.type, data, (end - begin, *tensor.shape[1:]))
        except FormatError as error:
            raise FormatError(f"{self.file.path}: {tensor.name}: {error}") from error
        if not np.isfinite(found).all():
            raise FormatError(f"{self.file.path}: {tensor.name}: holds a value that is no finite number")
        return found

    def scale(self, module: str) -> np.float32:
        """Return what the products of a layer are multiplied by, 1 where the file does not say."""
        tensor = self.tensor(module, "scale")
        if tensor is None:
            return np.float32(1)
        return np.float32(self.values(module, "scale").reshape(-1)[0])

    def bias(self, module: str) -> NDArray[np.float32] | None:
        """Return a layer's bias float32 ``[O]``, or None."""
        return None if self.tensor(module, "bias") is None else self.values(module, "bias")

    def stored(self, module: str) -> Stored:
        """Return type and bytes of a module in this file."""
        found = [tensor for suffix in ("weight", "bias", "scale") if (tensor := self.tensor(module, suffix))]
        return Stored(found[0].type.name, sum(tensor.num_bytes for tensor in found))


def open_model(path: str | Path, keep_subln: bool = True) -> GgufModel:
    """Return a GGUF file of one of our architectures after comparing each tensor's name and shape with its settings.

    ``keep_subln`` off: a llama model with SubLN is read as the bitnet it computes, which transformers has a class for.

    Raises: FormatError naming the file and the first thing that is wrong.
    """
    file = read_gguf(path)
    architecture = known_architecture(file)
    if file.size("split.count", 1 << 16, 1, least=0) > 1:
        raise FormatError(f"{file.path}: is one of several files; join them first: llama-gguf-split --merge")
    if rotated := [key for key in file.metadata if key.startswith(_ROTATED)]:
        raise FormatError(f"{file.path}: {rotated[0]}: weights for rotated inputs, which no model here computes")
    origin = parse_origin(file.text(GGUF_KEY, None), f"{file.path}: {GGUF_KEY}")
    # Norms that a llama model got from SubLN; without our word for it they are a bitnet's own.
    if not (architecture.sub_norms and keep_subln):
        origin = replace(origin, subln="none")
    config = from_gguf(file, subln=origin.subln != "none")
    sizes = parse_config(config, str(file.path))
    wanted = packed_tensors(sizes, origin.info("tensor", 64, "f16"))
    linears = sizes.linears()
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor, _ in wanted:
        module, _, kind = tensor.name.rpartition(".")
        if kind == "weight":
            shapes[module] = (linears[module].rows, linears[module].columns) if module in linears else tensor.shape
    _compare(file, shapes, linears)
    return GgufModel(file, config, sizes, origin, shapes)


def is_ternary_gguf(path: str | Path) -> bool:
    """Return whether a path is a GGUF file of an architecture of ours whose first layer is ternary.

    Raises: FormatError when such a file is damaged.
    """
    if not is_gguf(path) or read_gguf(path).architecture not in ARCHITECTURES:
        return False
    model = open_model(path)
    try:
        ternary_layer(model, next(iter(model.sizes.linears())))
    except FormatError:
        return False
    return True


def gguf_parts(path: str | Path) -> ModelParts:
    """Return a GGUF file's model as its parts, a view of the file: codes and tables are made when asked for.

    The granularity is the coarsest that holds all layers exactly.

    Raises: FormatError when the file is damaged, is of no architecture of ours, or a layer is not ternary.
    """
    model = open_model(path)
    linears = model.sizes.linears()
    fine = {name: _fine_scales(model, name) for name in linears}
    try:
        grain = common_grain((name, fine[name], (shape.rows, shape.columns)) for name, shape in linears.items())
    except FormatError as error:
        raise FormatError(f"{model.file.path}: {error}") from error
    scales = {}
    for name, shape in linears.items():
        found = regroup(fine.pop(name), (shape.rows, shape.columns), grain)
        assert found is not None
        scales[name] = found
    info = model.origin.info(grain.granularity, grain.group_size or 64, _table_format(model))
    parts = tuple(_part(model, name, scales.get(name)) for name in model.tensors)
    return ModelParts(str(model.file.path), model.config, info, parts, files_of(model.file))


def files_of(file: GgufFile) -> dict[str, bytes]:
    """Return the tokenizer's files, none where the file has no tokenizer."""
    return tokenizer_from_gguf(file) if "tokenizer.ggml.model" in file.metadata else {}


def _part(model: GgufModel, name: str, scales: NDArray[np.float32] | None) -> Part:
    shape, stored = model.tensors[name], model.stored(name)
    if scales is not None:

        def read() -> tuple[NDArray[np.int8], NDArray[np.float32]]:
            return ternary_layer(model, name)[0], scales

        rows = _code_rows(model, name, scales)
        found = read if rows is None else StoredCodes(rows, read)
        return TernaryPart(name, (shape[0], shape[1]), found, model.bias(name), None, stored)
    if name in TABLES:
        return TablePart(
            name, (shape[0], shape[1]), lambda: model.values(name), stored, read_rows=partial(model.table_rows, name)
        )
    return NormPart(name, model.values(name), None, stored)


def _fine_scales(model: GgufModel, name: str) -> NDArray[np.float32]:
    """Return the scales that `ternary_layer` gives, the codes unpacked only where they decide over them."""
    tensor = model.tensor(name)
    assert tensor is not None
    if not has_plain_scales(tensor.type, model.file.data(tensor.name)):
        return ternary_layer(model, name)[1]
    return np.abs(_signed_scales(model, name, tensor))


def _signed_scales(model: GgufModel, name: str, tensor: GgufTensor) -> NDArray[np.float32]:
    """Return the scales of a type of `has_plain_scales` as the file has them, the layer's own multiplied in."""
    try:
        scales = scales_of(tensor.type, model.file.data(tensor.name), (tensor.shape[0], tensor.shape[1]))
    except FormatError as error:
        raise FormatError(f"{model.file.path}: {tensor.name} ({tensor.type.name}): {error}") from error
    return (rows_from_gguf(scales, model.heads(name)) * model.scale(name)).astype(np.float32)


def _code_rows(model: GgufModel, name: str, scales: NDArray[np.float32]) -> CodeRows | None:
    """Return the rows of a type whose codes the engine repacks itself, None for another.

    A block whose scale is 0 may hold any codes, which such a scale makes 0 and a wider group's would not; where a scale
    is negative, the codes are those of `ternary_layer` with their signs changed.
    """
    tensor = model.tensor(name)
    assert tensor is not None
    columns = _REPACKED.get(tensor.type.name, 0)
    data, heads = model.file.data(tensor.name), model.heads(name)
    if columns == 0 or tensor.shape[1] % columns or not has_plain_scales(tensor.type, data):
        return None
    if not (_signed_scales(model, name, tensor) > 0).all():
        return None
    codes = data[: data.size - tensor.type.tail_bytes]
    order = None if heads is None else rows_from_gguf(np.arange(tensor.shape[0], dtype=np.int32), heads)
    return CodeRows(tensor.type.name, codes, order, scales)


def ternary_layer(model: GgufModel, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return a layer's codes int8 ``[O, I]`` and scales as fine as the file has them, in Hugging Face's order.

    Raises: FormatError when it is not ternary, saying what to do with the file.
    """
    tensor = model.tensor(name)
    assert tensor is not None
    data, shape = model.file.data(tensor.name), (tensor.shape[0], tensor.shape[1])
    try:
        if tensor.type.name in TERNARY_TYPES:
            codes, scales = decode(tensor.type, data, shape)
        else:
            values = dequantize(tensor.type, data, shape)
            found = exact_ternary(values)
            if found is None:
                raise FormatError("its values are not ternary")
            codes, scales = found
    except FormatError as error:
        path = model.file.path
        hint = ""
        if tensor.type.name not in _ONLY_TERNARY:
            hint = f"; to make this model ternary: wf convert {path} CHECKPOINT, or wf import {path} OUT --to hf"
        raise FormatError(f"{path}: {tensor.name} ({tensor.type.name}): {error}{hint}") from error
    heads = model.heads(name)
    scales = rows_from_gguf(scales, heads) * model.scale(name)
    codes = rows_from_gguf(codes, heads)
    if (scales < 0).any():  # the same products; whoever rounds or clamps a scale expects its size
        signs = np.where(scales < 0, -1, 1).astype(np.int8)
        codes = codes * (signs if signs.size == 1 else np.repeat(signs, shape[1] // signs.shape[1], axis=1))
    return codes, np.abs(scales).astype(np.float32)


# Types that the engine repacks, with the columns of a block.
_REPACKED = {"TQ1_0": 256, "TQ2_0": 256, "Q4_0": 32, "I2_S": 128}
_ONLY_TERNARY = frozenset({"TQ1_0", "TQ2_0", "I2_S", "PTQ1_0", "Q2_0", "Q2_0_G128", "PQ2_0"})


def _table_format(model: GgufModel) -> TableFormat:
    """How a packed directory would keep the tables: exactly where that is float16 and not large, else in 8 bits."""
    for name in TABLES:
        tensor = model.tensor(name) if name in model.tensors else None
        if tensor is None:
            continue
        rows, columns = tensor.shape
        if tensor.type.name not in FLOATS or 2 * rows * columns > EXACT_TABLE_BYTES:
            return "q8"
        if tensor.type.name != "F16" and not _is_half(model.values(name)):
            return "q8"
    return "f16"


def _is_half(values: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16) == values).all())


def _compare(file: GgufFile, shapes: Mapping[str, tuple[int, ...]], linears: Container[str]) -> None:
    """Compare names and shapes with the table of the file; layers may have a bias and a scale. Raises: FormatError."""
    architecture = known_architecture(file)
    left = set(file.tensors)
    for other, what in (("ffn_gate_inp", "a mixture of experts"), ("attn_qkv", "q, k and v fused into one tensor")):
        if f"blk.0.{other}.weight" in left:
            raise FormatError(f"{file.path}: blk.0.{other}.weight: {what} cannot be read")
    for module, shape in shapes.items():
        theirs = tensor_name(module, architecture.name)
        if f"{theirs}.weight" not in file.tensors:
            raise FormatError(f"{file.path}: the tensor {theirs}.weight is missing; the file is damaged")
        suffixes = {"weight": shape, "bias": shape[:1], "scale": (1,)} if module in linears else {"weight": shape}
        for suffix, wanted in suffixes.items():
            found = file.tensors.get(f"{theirs}.{suffix}")
            if found is not None and found.shape != wanted:
                raise FormatError(
                    f"{file.path}: {theirs}.{suffix}: found the shape {list(found.shape)}, {list(wanted)} is needed"
                )
            left.discard(f"{theirs}.{suffix}")
        if f"{theirs}.bias" in file.tensors and module.rpartition(".")[2] not in architecture.biases:
            raise FormatError(f"{file.path}: {theirs}.bias: no {architecture.name} model has it")
    if architecture.rope_factors:
        left.discard(ROPE_FACTORS)
    if architecture.tied and "output.weight" in left:
        _same_head(file)
        left.discard("output.weight")
    if left:
        raise FormatError(f"{file.path}: unknown tensor {min(left)}; no {architecture.name} model has it")


def _same_head(file: GgufFile) -> None:
    """The graph multiplies by the embedding whatever ``output.weight`` holds; where that differs, who is right?"""
    head, table = file.tensors["output.weight"], file.tensors["token_embd.weight"]
    same = (head.type, head.shape) == (table.type, table.shape)
    if not same or not np.array_equal(file.data(head.name), file.data(table.name)):
        raise FormatError(
            f"{file.path}: output.weight: differs from token_embd.weight, which {file.architecture} takes as the head"
        )
