"""Reading a ``.bin`` file of early converters (`sgl_bin_file`) as the parts of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.config import ModelConfig, parse_config
from wrinklefree.artifact.manifest import TABLES, PackedInfo, packed_tensors
from wrinklefree.artifact.origin import HF_KEY, parse_origin
from wrinklefree.artifact.parts import ModelParts, NormPart, Part, Stored, TablePart, TernaryPart
from wrinklefree.artifact.sgl_bin_file import BinFile
from wrinklefree.artifact.ternary_values import Grain, exact_ternary, regroup
from wrinklefree.artifact.tokenizer import read_model_files
from wrinklefree.errors import FormatError

_DROPPED = ("wrinklefree", "quantization_config", "auto_map", HF_KEY)
# Where the norm stood in one module with the layer it precedes, its own name is the layer's and a number.
_IN_SEQUENCE = re.compile(r"(.*\.(?:self_attn|mlp))\.(o_proj|down_proj)\.([01])\.(\w+)")
_SUB_NORMS = {"o_proj": "attn_sub_norm", "down_proj": "ffn_sub_norm"}


def bin_parts(path: str | Path, tokenizer_dir: str | Path | None = None) -> ModelParts:
    """Return the model in a ``.bin`` file as its parts.

    The file has no tokenizer: the files of ``tokenizer_dir`` go along, or those beside it.

    Raises: FormatError when the file is damaged or holds latents, which its readers would have ternarised by rules of
    their own.
    """
    path = Path(path)
    file = BinFile(path)
    place = f"{path}: config"
    _check_scales_multiply(file.config, place)
    source = _Source(file)
    config = {key: value for key, value in file.config.items() if key not in _DROPPED}
    config["tie_word_embeddings"] = source.is_tied(config.get("tie_word_embeddings"))
    sizes = parse_config(config, place)
    has_subln = not sizes.has_sub_norms and any("sub_norm" in name for name in source.names)
    origin = parse_origin(file.config.get(HF_KEY), f"{place}: {HF_KEY}")
    subln = "none" if not has_subln else origin.subln if origin.subln != "none" else "ones"
    info = replace(origin.info("tensor", 64, "q8"), subln=subln)
    parts = tuple(_parts(source, sizes, info))
    left = sorted(source.names.keys() - source.used)
    if left:
        raise FormatError(f"{file.place(source.names[left[0]])}: is a tensor that the config gives no place")
    files = read_model_files(path.parent if tokenizer_dir is None else tokenizer_dir)
    return ModelParts(str(path), config, info, parts, files)


@dataclass
class _Source:
    """The tensors under Hugging Face's names, and which of them were asked for."""

    file: BinFile
    names: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for stored in self.file.tensors:
            name = _usual_name(stored)
            if name in self.names:
                raise FormatError(f"{self.file.place(stored)}: stands for {name}, which the file has already")
            self.names[name] = stored

    def floats(self, name: str, *shape: int) -> NDArray[np.float32]:
        self.used.add(name)
        return self.file.floats(self.names.get(name, name), shape)

    def stored(self, owner: str) -> Stored:
        found = [self.file.tensors[s] for k in ("weight", "bias") if (s := self.names.get(f"{owner}.{k}")) is not None]
        return Stored(found[0].dtype, sum(tensor.num_bytes for tensor in found)) if found else Stored()

    def is_tied(self, said: object) -> bool:
        """Whether there is one table. A packed head beside a tied embedding is a table of its own, a rougher one."""
        head = self.names.get("lm_head.weight")
        if head is None:
            return said is not False
        embedding = self.names.get("model.embed_tokens.weight")
        if said and embedding is not None and np.array_equal(self.file.array(head), self.file.array(embedding)):
            self.used.add("lm_head.weight")
            return True
        return False

    def ternary(self, name: str, rows: int, columns: int) -> TernaryPart:
        weight = f"{name}.weight"
        self.used.add(weight)
        stored = self.names.get(weight, weight)
        tensor = self.file.tensors.get(stored)
        if tensor is not None and tensor.scale is not None:
            self.file.check_ternary(stored, rows, columns)
            codes, scales = (lambda: self.file.ternary(stored, rows, columns)), tensor.scale.reshape(1)
        else:
            values = self.file.floats(stored, (rows, columns))
            found = exact_ternary(values)
            one = None if found is None else regroup(found[1], (rows, columns), Grain("tensor"))
            if found is None or one is None:
                raise FormatError(
                    f"{self.file.place(stored)}: holds floats that are not ternary; convert the original model again"
                )
            exact = found[0]
            codes, scales = (lambda: exact), one
        bias = self.floats(f"{name}.bias", rows) if f"{name}.bias" in self.names else None
        return TernaryPart(name, (rows, columns), lambda: (codes(), scales), bias, stored=self.stored(name))

    def table(self, name: str, rows: int, columns: int) -> TablePart:
        weight = f"{name}.weight"
        self.used.add(weight)
        stored = self.names.get(weight, weight)
        tensor = self.file.tensors.get(stored)
        scale = None if tensor is None else tensor.scale
        if scale is None:
            self.file.floats(stored, (rows, columns))
        else:
            self.file.check_ternary(stored, rows, columns)

        def read() -> NDArray[np.float32]:
            if scale is None:
                return self.file.floats(stored, (rows, columns))
            return self.file.ternary(stored, rows, columns) * scale

        return TablePart(name, (rows, columns), read, self.stored(name))


def _parts(source: _Source, sizes: ModelConfig, info: PackedInfo) -> Iterator[Part]:
    """Yield the parts that a model of these sizes has."""
    gain_offset = np.float32(1 if sizes.model_type.startswith("gemma") else 0)
    linears = sizes.linears()
    for tensor, _ in packed_tensors(sizes, replace(info, embedding="f16")):
        owner, _, kind = tensor.name.rpartition(".")
        if kind != "weight":
            continue
        if owner in linears:
            yield source.ternary(owner, linears[owner].rows, linears[owner].columns)
        elif owner in TABLES:
            yield source.table(owner, sizes.vocab_size, sizes.hidden_size)
        else:
            gains = source.floats(tensor.name, *tensor.shape)
            yield NormPart(owner, gains + gain_offset if gain_offset else gains, stored=source.stored(owner))


def _usual_name(stored: str) -> str:
    found = _IN_SEQUENCE.fullmatch(stored)
    if found is None:
        return stored
    parent, layer, position, kind = found.groups()
    return f"{parent}.{_SUB_NORMS[layer] if position == '0' else layer}.{kind}"


def _check_scales_multiply(config: Mapping[str, Any], place: str) -> None:
    """The converters copied the scale of a packed source as it stood, also where its layers divide by it."""
    settings: Any = config.get("quantization_config")
    packed = isinstance(settings, dict) and settings.get("quantization_mode") == "offline"
    if packed and settings.get("linear_class", "bitlinear") != "autobitlinear":
        raise FormatError(
            f"{place}: quantization_config: the source's layers divided by their scales, which were copied as factors; "
            "convert the original model again"
        )
