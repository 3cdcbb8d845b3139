"""One walk over a converted torch model: its parts, which every export format is written from.

The walk names each parameter once, in the order of the model, as one of three kinds: a ternary layer, a table
(embedding or untied head), a norm. A parameter that is none of these is refused, so that nothing of a model can be left
out of a file in silence. `model_parts` gives the whole model as `artifact.parts` says it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from wrinklefree.artifact.manifest import WEIGHTS, PackedInfo
from wrinklefree.artifact.packed_writer import FACTORS
from wrinklefree.artifact.parts import ModelParts, NormPart, Part, Stored, TablePart, TernaryPart
from wrinklefree.artifact.safetensors_file import SafetensorsFile, TensorInfo
from wrinklefree.artifact.tokenizer import read_model_files
from wrinklefree.errors import InputError
from wrinklefree.models.subln import SubLayerNorm
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.low_rank import LowRankBitLinear
from wrinklefree.quant.ternary import TernarySpec

TABLES = ("model.embed_tokens", "lm_head")
_SUFFIXES = ("weight", "weight_scale", "bias", "eps", *FACTORS)


@dataclass(frozen=True)
class TernaryLayer:
    """A `BitLinear` under its full name; its codes are computed when asked for."""

    name: str
    layer: BitLinear

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input features."""
        return self.layer.out_features, self.layer.in_features

    @property
    def spec(self) -> TernarySpec:
        return self.layer.spec

    def codes_and_scales(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Return ternary values int8 ``[O, I]`` and scales float32 ``[1]``, ``[O]`` or ``[O, G]``."""
        codes, scales = self.layer.ternary()
        return codes.cpu().numpy(), scales.detach().float().cpu().numpy()

    @property
    def rank(self) -> int:
        """The rank of the low-rank correction, 0 when there is none."""
        return self.layer.rank if isinstance(self.layer, LowRankBitLinear) else 0

    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return U ``[O, r]`` and V^T ``[r, I]`` of a layer that has them."""
        assert isinstance(self.layer, LowRankBitLinear)
        return _numpy(self.layer.low_rank_u), _numpy(self.layer.low_rank_v)

    def bias(self) -> NDArray[np.float32] | None:
        """Return the bias float32 ``[O]``, or None."""
        return None if self.layer.bias is None else _numpy(self.layer.bias)


@dataclass(frozen=True)
class Table:
    """The embedding or an untied head, ``[V, D]``."""

    name: str
    parameter: nn.Parameter

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.parameter.shape
        return rows, columns

    def values(self) -> NDArray[np.float32]:
        """Return the table in float32."""
        return _numpy(self.parameter)


@dataclass(frozen=True)
class Norm:
    """The gains of an RMSNorm, ``[D]``, and its epsilon ``[1]`` where that is its own (SubLN).

    ``offset`` is added to the parameter: Gemma's norms multiply by one plus it.
    """

    name: str
    parameter: nn.Parameter
    eps: Tensor | None = None
    offset: float = 0.0

    def values(self) -> NDArray[np.float32]:
        """Return the gains in float32, what a normed vector is multiplied by."""
        return _numpy(self.parameter.float() + self.offset)


Entry = TernaryLayer | Table | Norm


def check_exportable(model: nn.Module) -> None:
    """Raise InputError when a layer's weight is not codes times scales, which is all a format can hold."""
    for name, module in model.named_modules():
        if not isinstance(module, BitLinear):
            continue
        if module.spec.quantizer != "absmean":
            raise InputError(
                f"{name}: is ternary in the Haar domain; its weights are sums of two codes, which no format can hold. "
                "Convert and train with model.quantizer=absmean to export"
            )
        if module.kept_columns is not None:
            count = int(module.kept_columns.sum())
            raise InputError(
                f"{name}: {count} of its columns are kept in full precision, which no format can hold; train on with "
                f"saliency.kind=linear saliency.initial={count / module.in_features:.3g} saliency.final=0 until "
                "saliency.end is passed, then export"
            )


def walk(model: nn.Module) -> Iterator[Entry]:
    """Yield every part of a converted model once, a tied head not at all.

    Raises: InputError for a parameter that no export format has a place for.
    """
    check_exportable(model)
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, BitLinear):
            yield TernaryLayer(name, module)
        elif name in TABLES:
            if not (tied and name == "lm_head"):
                yield Table(name, own["weight"])
        elif "norm" in name.rpartition(".")[2] and set(own) == {"weight"} and own["weight"].ndim == 1:
            eps = dict(module.named_buffers(recurse=False)).get("eps")
            yield Norm(name, own["weight"], eps, _gain_offset(module, model))
        elif own:
            raise InputError(
                f"{name}.{min(own)}: a {type(module).__name__} stayed in full precision; convert the whole model first"
            )


def _gain_offset(norm: nn.Module, model: nn.Module) -> float:
    family = str(getattr(model.config, "model_type", ""))
    return 1.0 if family.startswith("gemma") and not isinstance(norm, SubLayerNorm) else 0.0


def model_parts(model: nn.Module, source: Path, config: Mapping[str, Any], info: PackedInfo) -> ModelParts:
    """Return a converted model as its parts.

    ``source`` is the checkpoint directory it was loaded from: its tokenizer and generation settings go along byte for
    byte, its file says what each tensor cost there; ``config`` is its config.json.

    Raises: InputError for a parameter that no export format has a place for.
    """
    stored = SafetensorsFile(source / WEIGHTS).tensors
    parts = tuple(_part(entry, _stored(entry.name, stored)) for entry in walk(model))
    settings = {key: value for key, value in config.items() if key != "wrinklefree"}
    return ModelParts(str(source), settings, info, parts, read_model_files(source))


def _part(entry: Entry, stored: Stored) -> Part:
    if isinstance(entry, Norm):
        return NormPart(entry.name, entry.values(), None if entry.eps is None else float(entry.eps), stored)
    if isinstance(entry, Table):
        return TablePart(entry.name, entry.shape, entry.values, stored)
    factors = entry.factors() if entry.rank else None
    return TernaryPart(entry.name, entry.shape, entry.codes_and_scales, entry.bias(), factors, stored)


def _stored(part: str, tensors: Mapping[str, TensorInfo]) -> Stored:
    found = [tensors[name] for suffix in _SUFFIXES if (name := f"{part}.{suffix}") in tensors]
    return Stored(found[0].dtype, sum(tensor.num_bytes for tensor in found)) if found else Stored()


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return array
