"""Hugging Face's BitNet: what we write, transformers loads and computes; what transformers writes, we read.

References: transformers' own classes on the written directory against the torch checkpoint (both round activations to
8 bits for each token, ours to -127..127, transformers' to -128..127, which is the same since the scale is 127 / max);
the parts that were written against the parts read back, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_checkpoints as toys
from transformers import AutoModelForCausalLM

from wrinklefree.artifact.huggingface.read_model import hf_parts
from wrinklefree.artifact.manifest import PackedInfo, read_config
from wrinklefree.artifact.packed_writer import write_packed
from wrinklefree.artifact.parts import ModelParts, NormPart, TablePart, TernaryPart, stored_tables
from wrinklefree.engine import Engine
from wrinklefree.export.hf_bitnet import HfOptions, prepare_hf, write_hf
from wrinklefree.export.hf_plain import check_plain, write_plain
from wrinklefree.export.walk import model_parts
from wrinklefree.models.io import load_checkpoint
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.low_rank import low_rank_linears
from wrinklefree.quant.ternary import TernarySpec

TENSOR = TernarySpec("tensor")


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """transformers compiles its BitNet layers, which needs a C++ compiler and seconds; eager computes the same."""
    with torch.compiler.set_stance("force_eager"):
        yield


def checkpoint(path: Path, family: str = "llama", **changes: Any) -> tuple[Any, ModelParts]:
    """A converted toy model and its parts; float16 holds its tables, so that the engine can have the same ones."""
    source = toys.write(path, family, **{"spec": TENSOR, **changes})
    model, _, info = load_checkpoint(source)
    for name, parameter in model.named_parameters():
        if name.startswith(("model.embed_tokens", "lm_head")):
            parameter.data = parameter.data.half().float()
    ranks = {name: layer.rank for name, layer in low_rank_linears(model)}
    packed = PackedInfo(info.spec.granularity, info.spec.group_size, "q8", info.subln, info.stage, low_rank=ranks)
    return model, model_parts(model, source, read_config(source), packed)


def written(directory: Path, parts: ModelParts, options: HfOptions | None = None) -> Path:
    directory.mkdir()
    write_hf(directory, parts, options or HfOptions())
    return directory


def assert_same_parts(found: ModelParts, expected: ModelParts) -> None:
    """Every number equal bit for bit."""
    others = {part.name: part for part in found.parts}
    assert others.keys() == {part.name for part in expected.parts}
    for part in expected.parts:
        other = others[part.name]
        if isinstance(part, TernaryPart) and isinstance(other, TernaryPart):
            for ours, theirs in zip(part.codes_and_scales(), other.codes_and_scales(), strict=True):
                np.testing.assert_array_equal(ours, theirs)
            assert (part.bias is None) == (other.bias is None)
            if part.bias is not None and other.bias is not None:
                np.testing.assert_array_equal(part.bias, other.bias)
        elif isinstance(part, TablePart) and isinstance(other, TablePart):
            np.testing.assert_array_equal(part.read(), other.read())
        else:
            assert isinstance(part, NormPart) and isinstance(other, NormPart)
            np.testing.assert_array_equal(part.gains, other.gains)


def engine_of(parts: ModelParts, directory: Path) -> Engine:
    """The engine on a packed directory of these parts, its tables in float16."""
    directory.mkdir()
    exact = replace(parts, info=replace(parts.info, embedding="f16"))
    write_packed(directory, exact, stored_tables(exact))
    return Engine.load(directory, threads=1, kv_type="float32")


def logits(model: Any, tokens: int = 40) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(3, 3 + tokens)[None]).logits[0].float()
    return found


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-subln": ("llama", {"subln": "identity"}),
    "llama-subln-ones-untied": ("llama", {"subln": "ones", "tie_word_embeddings": False}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen2-subln": ("qwen2", {"subln": "identity"}),
    "qwen3": ("qwen3", {}),
}


# The quick ones together see SubLN's own epsilons, an untied head, biases with either class, both classes.
QUICK = {("llama-subln", None), ("llama-subln-ones-untied", "bitlinear"), ("qwen2", "autobitlinear"), ("qwen2", None)}


@pytest.mark.parametrize(
    ("case", "linear_class"),
    [
        pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)
        for case in CASES
        for linear_class in (None, "autobitlinear", "bitlinear")
        for pair in [(case, linear_class)]
    ],
)
def test_transformers_computes_what_the_checkpoint_does(tmp_path: Path, case: str, linear_class: Any) -> None:
    family, changes = CASES[case]
    model, parts = checkpoint(tmp_path / "src", family, **changes)
    options = HfOptions(linear_class)
    out = written(tmp_path / "out", parts, options)
    assert_same_parts(hf_parts(out), prepare_hf(parts, options))
    loaded = AutoModelForCausalLM.from_pretrained(out).eval()
    expected, found = logits(model), logits(loaded)
    # Sums in float32 in another order: 1e-5 of logits of size 10. Where that or a scale's last bit turns an activation
    # into the next of its 255 steps, the logits of this token and of later ones move a little; most tokens meet none.
    difference = (expected - found).abs().amax(dim=1)
    assert difference.median() < 1e-4 and difference.max() < 0.1
    assert torch.nn.functional.cosine_similarity(expected, found).min() > 0.9999


def test_plain_floats_in_transformers_are_the_ternary_values(tmp_path: Path) -> None:
    """Reference: transformers' own Llama loads the checkpoint's products of codes and scales."""
    model, parts = checkpoint(tmp_path / "src", spec=TernarySpec("group", 64), attention_bias=True)
    out = tmp_path / "out"
    out.mkdir()
    write_plain(out, parts)
    assert check_plain(out, parts) == len(AutoModelForCausalLM.from_pretrained(out).state_dict()) - 1
    loaded = AutoModelForCausalLM.from_pretrained(out).eval()
    assert loaded.dtype == torch.float32
    for name, layer in bit_linears(model):
        assert torch.equal(loaded.get_submodule(name).weight, layer.quantized_weight()[0].detach()), name
    for name, parameter in model.named_parameters():
        if "proj.weight" not in name and name in dict(loaded.named_parameters()):
            assert torch.equal(dict(loaded.named_parameters())[name], parameter), name
