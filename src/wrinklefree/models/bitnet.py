"""Sources that are BitNet already: their weights as plain latents, whatever way transformers would have loaded them.

A repository with ``quantization_config: {quant_method: bitnet}`` stores either float latents that its layers
ternarise on the fly (``quantization_mode: online``), or codes packed four to a byte with one ``weight_scale`` for each
matrix. `artifact.huggingface.bitnet_layout` says what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file

from wrinklefree.artifact.files import read_json
from wrinklefree.artifact.huggingface.bitnet_layout import Scheme, step_of, unpack_rows
from wrinklefree.artifact.huggingface.shards import all_plain
from wrinklefree.errors import FormatError


def is_bitnet_quantized(config: Any) -> bool:
    """Return whether transformers would put BitNet layers of its own into a model of this ``config``."""
    return _settings(config).get("quant_method") == "bitnet"


def load_latents(config: Any, src: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model of ``src`` with plain linear layers in ``dtype``; ``config`` is its own and is changed.

    Raises: FormatError when packed weights and scales do not fit together.
    """
    scheme = Scheme.of(_settings(config), f"{src}: quantization_config")
    del config.quantization_config
    if scheme.online:
        online: PreTrainedModel = AutoModelForCausalLM.from_pretrained(src, config=config, dtype=dtype)
        return online
    state = unpacked(_tensors(src), scheme.divide, src)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    report = model.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, strict=False)
    missing = set(report.missing_keys) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    if missing or report.unexpected_keys:
        raise FormatError(f"{src}: missing tensors {sorted(missing)[:3]}, unknown {report.unexpected_keys[:3]}")
    model.tie_weights()
    return model


def unpacked(state: dict[str, Tensor], divide: bool, place: str) -> dict[str, Tensor]:
    """Return ``state`` with uint8 weights [O/4, I] as float32 codes times their steps, [O, I], and biases to match.

    Raises: FormatError naming ``place`` for a packed weight without a scale, a code or a scale that cannot be.
    """
    steps = {
        name.removesuffix("_scale"): _checked(f"{place}: {name}", step_of, scale.float().reshape(-1).numpy(), divide)
        for name, scale in state.items()
        if name.endswith(".weight_scale")
    }
    plain = {}
    for name, tensor in state.items():
        if name.endswith(".weight_scale"):
            continue
        step = steps.get(name)
        if tensor.dtype == torch.uint8:
            if step is None:
                raise FormatError(f"{place}: {name} is packed, but {name}_scale is missing; the file is damaged")
            tensor = torch.from_numpy(_checked(f"{place}: {name}", unpack_rows, tensor.numpy()))
        if step is not None:
            tensor = tensor.float() * torch.from_numpy(step)[:, None]
        owner = steps.get(f"{name.removesuffix('bias')}weight")
        if name.endswith(".bias") and owner is not None and not divide:
            tensor = tensor.float() * torch.from_numpy(owner)
        plain[name] = tensor
    return plain


def _checked(place: str, read: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except FormatError as error:
        raise FormatError(f"{place}: {error}") from error


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
