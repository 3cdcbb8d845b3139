"""What is in the files of other programs: their tensors as they stand, and the model that they are for us, if any.

A file that is damaged is refused with its reader's words. One that is whole but no model for the engine (layers that
are not ternary, an architecture we do not run) is shown too, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.files import sha256
from wrinklefree.artifact.gguf.container import GgufFile, read_gguf
from wrinklefree.artifact.gguf.names import tensor_name
from wrinklefree.artifact.gguf.read_model import files_of, gguf_parts
from wrinklefree.artifact.huggingface.read_model import hf_parts
from wrinklefree.artifact.huggingface.shards import ShardedTensors
from wrinklefree.artifact.inspection.rows import Inspection, TensorRow, scales_text
from wrinklefree.artifact.inspection.tokenizer import tokenizer_of
from wrinklefree.artifact.manifest import read_config
from wrinklefree.artifact.origin import GGUF_KEY, HF_KEY, origin_of
from wrinklefree.artifact.parts import CodeRows, ModelParts, StoredCodes, TernaryPart
from wrinklefree.artifact.sgl_bin import bin_parts
from wrinklefree.artifact.sgl_bin_file import BinFile
from wrinklefree.artifact.tokenizer import read_model_files
from wrinklefree.errors import FormatError, InputError

# Metadata arrays longer than this are described, not listed.
_MAX_LISTED = 16
# What stands beside a ternary layer and is no weight of its own.
_BESIDE = ("weight_scale", "scale", "scales", "biases")


def inspect_gguf(path: Path) -> Inspection:
    """Return what is in a GGUF file. Raises: FormatError when it is damaged."""
    file = read_gguf(path)
    own: dict[str, Any] = {}
    tokenizer: dict[str, Any] = {}
    for key in file.metadata:
        (tokenizer if key.startswith("tokenizer.") else own)[key] = _listed(file, key)
    rows = [TensorRow(t.name, t.type_name, t.shape, t.num_bytes, math.prod(t.shape)) for t in file.tensors.values()]
    found = Inspection(path, "gguf", own, tuple(rows), tokenizer=tokenizer)

    def named(part: str) -> str:
        return f"{tensor_name(part, file.architecture)}.weight"

    found = _with_model(found, lambda: gguf_parts(path), named, GGUF_KEY in own)
    if found.why_not:
        try:
            known = tokenizer_of(files_of(file), path, {})
        except InputError as error:
            known = {"why_not": str(error)}
    else:
        known = dict(found.tokenizer)
    return replace(found, tokenizer={**known, **tokenizer}, hashes={path.name: sha256(path)})


def inspect_hf(directory: Path, architecture: Mapping[str, Any]) -> Inspection:
    """Return what is in a Hugging Face directory. Raises: FormatError when it is damaged."""
    raw = read_config(directory)
    shown = dict(architecture)
    for key in ("architectures", "quantization_config", "quantization"):
        if raw.get(key) is not None:
            shown[key] = raw[key]
    found = Inspection(directory, "hf", shown, tuple(stored_rows(directory)))
    found = _with_model(found, lambda: hf_parts(directory), _usual, HF_KEY in raw)
    if found.why_not:
        return replace(found, tokenizer=tokenizer_of(read_model_files(directory), directory, raw))
    files = sorted(p for p in directory.iterdir() if p.is_file() and p.suffix in (".safetensors", ".json", ".jinja"))
    return replace(found, hashes={file.name: sha256(file) for file in files})


def inspect_bin(path: Path) -> Inspection:
    """Return what is in a ``.bin`` file of early converters. Raises: FormatError when it is none, or damaged."""
    file = BinFile(path)
    rows = [TensorRow(n, t.dtype, t.shape, t.num_bytes, math.prod(t.shape)) for n, t in file.tensors.items()]
    shown = {key: value for key, value in file.config.items() if not isinstance(value, dict)}
    found = Inspection(path, "bin", shown, tuple(rows))
    found = _with_model(found, lambda: bin_parts(path), _usual, HF_KEY in file.config)
    return replace(found, hashes={path.name: sha256(path)})


def stored_rows(directory: Path) -> Iterator[TensorRow]:
    """Yield the tensors of a directory's safetensors file, or of all the shards its index names."""
    tensors = ShardedTensors(directory)
    for name in sorted(tensors.names):
        info = tensors.info(name)
        assert info is not None
        yield TensorRow(name, info.dtype, info.shape, info.num_bytes, info.num_elements)


def _usual(part: str) -> str:
    return f"{part}.weight"


def _with_model(
    found: Inspection, read: Callable[[], ModelParts], named: Callable[[str], str], has_origin: bool
) -> Inspection:
    """Add what the tensors are as a model of ours: zeros, counts, scales, origin, tokenizer; or why they are none."""
    try:
        model = read()
    except InputError as error:
        return replace(found, why_not=str(error))
    layers = {named(part.name): part for part in model.parts if isinstance(part, TernaryPart)}
    beside = {f"{name.removesuffix('weight')}{suffix}" for name in layers for suffix in _BESIDE}
    rows = []
    for row in found.tensors:
        if row.name in layers:
            part = layers[row.name]
            row = replace(row, num_parameters=math.prod(part.shape), zeros=_zeros(part, model.place))
        elif row.name in beside:
            row = replace(row, num_parameters=0)
        rows.append(row)
    info = model.info
    return replace(
        found,
        tensors=tuple(rows),
        training=origin_of(info) if has_origin else {},
        tokenizer=tokenizer_of(model.files, model.place, model.config),
        scales=scales_text(info.granularity, info.group_size),
    )


def _zeros(part: TernaryPart, place: str) -> float:
    """The share of zeros among the codes of a layer."""
    if isinstance(part.read, StoredCodes):
        return _zeros_of_rows(part.read.rows, f"{place}: {part.name}") / math.prod(part.shape)
    codes, _ = part.codes_and_scales()
    return 1 - np.count_nonzero(codes) / codes.size


def _zeros_of_rows(rows: CodeRows, place: str) -> int:
    """How many codes are 0: how often each byte value occurs, times how many of its codes are."""
    if rows.type_name == "TQ1_0":
        blocks = rows.data.reshape(-1, 54)
        return _count(blocks[:, :48], _TRITS[:, :5]) + _count(blocks[:, 48:52], _TRITS[:, :4])
    if rows.type_name == "Q4_0":
        return _count(rows.data.reshape(-1, 18)[:, 2:], _NIBBLES)
    body = rows.data.reshape(-1, 66)[:, :64] if rows.type_name == "TQ2_0" else rows.data
    counts = np.bincount(body.reshape(-1), minlength=256)
    if counts[(_PAIRS == 3).any(axis=1)].any():
        raise FormatError(f"{place}: found a code that is none of -1, 0 and 1")
    return int(counts @ (_PAIRS == 1).sum(axis=1))


def _count(body: NDArray[np.uint8], codes: NDArray[np.int64]) -> int:
    return int(np.bincount(body.reshape(-1), minlength=256) @ (codes == 1).sum(axis=1))


# The codes in each byte value, [256, codes].
_PAIRS = np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3
_NIBBLES = (np.arange(256)[:, None] >> np.array([0, 4]) & 15) - 7
_TRITS = ((np.arange(256)[:, None] * np.array([1, 3, 9, 27, 81]) & 255) * 3) >> 8


def _listed(file: GgufFile, key: str) -> Any:
    """A value as JSON can hold it: arrays that are long (vocabularies, merges) are described, not listed."""
    length = file.metadata.length(key)
    if length is not None and length > _MAX_LISTED:
        return f"[{length} values]"
    value = file.metadata[key]
    found = value.tolist() if isinstance(value, np.ndarray) else value
    return [_plain(each) for each in found] if isinstance(found, list) else _plain(found)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # which JSON has no number for
    return value[:60] + "..." if isinstance(value, str) and len(value) > 60 else value
