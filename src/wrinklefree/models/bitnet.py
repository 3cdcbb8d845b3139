"""Sources that are BitNet already: their weights as plain latents, whatever way transformers would have loaded them.

A repository with ``quantization_config: {quant_method: bitnet}`` stores either float latents that its layers
ternarise on the fly (``quantization_mode: online``), or codes packed four to a byte with one ``weight_scale`` for each
matrix (``offline``, and ``linear_class: bitlinear``). Row i M/4 + j of M rows stands in bits 2 i of row j, as code + 1.

The layouts and scale conventions are those of transformers' integrations/bitnet.py: ``autobitlinear`` multiplies by
``weight_scale``, ``bitlinear`` divides by it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file

from wrinklefree.artifact.files import read_json
from wrinklefree.artifact.shards import all_plain
from wrinklefree.errors import FormatError

_PER_BYTE = 4


def is_bitnet_quantized(config: Any) -> bool:
    """Return whether transformers would put BitNet layers of its own into a model of this ``config``."""
    return _settings(config).get("quant_method") == "bitnet"


def load_latents(config: Any, src: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model of ``src`` with plain linear layers in ``dtype``; ``config`` is its own and is changed.

    Raises: FormatError when packed weights and scales do not fit together.
    """
    settings = _settings(config)
    del config.quantization_config
    if settings.get("linear_class") == "autobitlinear" and settings.get("quantization_mode") == "online":
        online: PreTrainedModel = AutoModelForCausalLM.from_pretrained(src, config=config, dtype=dtype)
        return online
    state = unpacked(_tensors(src), settings.get("linear_class", "bitlinear") != "autobitlinear", src)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    report = model.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, strict=False)
    missing = set(report.missing_keys) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    if missing or report.unexpected_keys:
        raise FormatError(f"{src}: missing tensors {sorted(missing)[:3]}, unknown {report.unexpected_keys[:3]}")
    model.tie_weights()
    return model


def unpacked(state: dict[str, Tensor], divide: bool, place: str) -> dict[str, Tensor]:
    """Return ``state`` with uint8 weights [M/4, K] as float32 codes times (or over) their scales, [M, K].

    Raises: FormatError naming ``place`` for a packed weight without a scale.
    """
    plain = {}
    for name, tensor in state.items():
        if name.endswith(".weight_scale"):
            continue
        scale = state.get(f"{name}_scale")
        if tensor.dtype == torch.uint8:
            if scale is None:
                raise FormatError(f"{place}: {name} is packed, but {name}_scale is missing; the file is damaged")
            tensor = torch.cat([(tensor >> (2 * i)) & 3 for i in range(_PER_BYTE)]).float() - 1.0
        if scale is not None:
            tensor = tensor.float() / scale.float() if divide else tensor.float() * scale.float()
        plain[name] = tensor
    return plain


def _settings(config: Any) -> dict[str, Any]:
    settings = getattr(config, "quantization_config", None) or {}
    return dict(settings if isinstance(settings, dict) else settings.to_dict())


def _tensors(src: str) -> dict[str, Tensor]:
    """Every tensor of a directory or a Hugging Face repository, one file or several."""
    index = cached_file(src, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    names = ["model.safetensors"]
    if index is not None:
        mapping = read_json(Path(index)).get("weight_map")
        found = set(mapping.values()) if isinstance(mapping, dict) and all_plain(mapping.values()) else set()
        if not found:
            raise FormatError(f"{index}: weight_map: an object from tensor names to plain file names is needed")
        names = sorted(found)
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = cached_file(src, name)
        assert path is not None
        tensors |= load_file(path)
    return tensors
