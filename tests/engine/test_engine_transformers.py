"""The engine against the model code of transformers: the same toy weights, dequantised, in the class of each family,
with int8 activations put before its linear layers. An opinion about rotary embedding, norms, windows and head order
that is not our own; test_engine_logits.py, which compares with our own reference, explains the tolerances.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_model import ReferenceModel
from toy_models import make_toy, toy_config
from transformers import AutoConfig, AutoModelForCausalLM

from wrinklefree.artifact.packing import unpack_codes, unpack_group_scales
from wrinklefree.engine import Engine


class Int8ActivationLinear(torch.nn.Linear):
    """A linear layer whose input is rounded to 127 steps of its largest value, token by token; ``factors``: U, V^T."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = 127 / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
        y = super().forward((x * scale).round() / scale)
        factors = getattr(self, "factors", None)
        return y if factors is None else y + x @ factors[1].T @ factors[0].T


def dequantised(name: str, tensor: Any, reference: ReferenceModel) -> Any:
    """A tensor of the packed file as float32 under the same name."""
    scale = reference.tensors.get(name + "_scale")
    table = name.removesuffix(".weight")
    if table in ("model.embed_tokens", "lm_head"):
        return reference.table(table)
    if tensor.dtype != np.uint8:
        return tensor.astype(np.float32)
    rows, columns = reference.widths[name.split(".")[-2]]
    layout = reference.config["wrinklefree"]["layout"]
    codes = unpack_codes(tensor, rows, columns, layout).astype(np.float32)
    if scale.dtype != np.float16:
        return codes * (scale if scale.size == 1 else scale[:, None])
    group_size = reference.config["wrinklefree"]["group_size"]
    by_column = np.repeat(unpack_group_scales(scale, rows).astype(np.float32), group_size, axis=1)[:, :columns]
    return codes * by_column


def own_gain(key: str, gain: Any, config: dict[str, Any]) -> Any:
    """A norm's parameter as its family has it: Gemma's multiply by one plus it."""
    return gain - 1 if "norm" in key and config["model_type"].startswith("gemma") else gain


def transformers_model(name: str, directory: Path) -> Any:
    reference = ReferenceModel(directory)
    config = AutoConfig.for_model(**toy_config(name))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    state = {
        key: torch.from_numpy(
            np.ascontiguousarray(own_gain(key, dequantised(key, tensor, reference), toy_config(name)))
        )
        for key, tensor in reference.tensors.items()
        if not key.endswith("_scale") and ".low_rank_" not in key
    }
    found = model.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= {"lm_head.weight"}
    for key, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and key != "lm_head":
            module.__class__ = Int8ActivationLinear
            if f"{key}.low_rank_u" in reference.tensors:
                module.factors = [torch.from_numpy(reference.tensors[f"{key}.low_rank_{f}"]).float() for f in "uv"]
    return model


@pytest.mark.parametrize(
    "name",
    [
        "llama_group_128",
        "llama3_rope_untied",
        "linear_rope_f16_head",
        "bias_everywhere",
        "qwen2",
        "qwen3",
        "bitnet",
        "low_rank",
    ],
)
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    directory = make_toy(tmp_path, name, seed=3)
    tokens = [int(t) for t in np.random.default_rng(4).integers(0, 250, 100)]
    with torch.no_grad():
        wanted = transformers_model(name, directory)(torch.tensor([tokens])).logits[0].numpy()
    found = Engine.load(directory, kv_type="float32").logits(tokens)
    errors = np.abs(found - wanted).max(axis=1) / wanted.std()
    # A quantised head rounds its input to 15 bits of the peak: half a step of 3 / 16256 in each of 64 columns with
    # weights of up to 3 / 8, all of them together the worst way, is 2e-3 of the spread; by chance 2e-4.
    assert errors[0] < (1e-4 if name == "linear_rope_f16_head" else 1e-3)
    assert np.median(errors) < 0.05
    assert errors.max() < 0.5


@pytest.mark.parametrize("name", ["mistral_window", "gemma3"])
def test_window_equals_transformers(tmp_path: Path, name: str) -> None:
    """Gemma 3 has windows and a rotary embedding of their own in two of three layers."""
    directory = make_toy(tmp_path, name, seed=3)
    tokens = [int(t) for t in np.random.default_rng(4).integers(0, 250, 100)]
    with torch.no_grad():
        wanted = transformers_model(name, directory)(torch.tensor([tokens])).logits[0].numpy()
    errors = np.abs(Engine.load(directory, kv_type="float32").logits(tokens) - wanted).max(axis=1) / wanted.std()
    assert np.median(errors) < 0.05
    assert errors.max() < 0.5
