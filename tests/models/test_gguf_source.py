"""GGUF files as plain models: our reading against transformers' own, bit for bit, and against the numbers written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_toys import Changes, toy_config, toy_parts, write_foreign
from transformers import AutoModelForCausalLM, AutoTokenizer

from wrinklefree.errors import FormatError, MissingDependencyError
from wrinklefree.models.io import load_source, source_config

TEXT = "Hello, world! 1234567 naïve — 東京 <|im_start|>user\n\n  tabs\tand spaces"
USED = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_id",
)  # fmt: skip


def check_as_transformers(path: Path) -> None:
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    theirs = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    ours, tokenizer = load_source(str(path))
    found, wanted = ours.state_dict(), theirs.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert {key: getattr(ours.config, key) for key in USED} == {key: getattr(theirs.config, key) for key in USED}
    assert ours.config.rope_parameters["rope_theta"] == theirs.config.rope_parameters["rope_theta"]
    assert np.float32(ours.config.rms_norm_eps) == np.float32(theirs.config.rms_norm_eps)
    ids = tokenizer.encode(TEXT)
    assert ids == AutoTokenizer.from_pretrained(**where).encode(TEXT)
    with torch.no_grad():
        assert torch.equal(ours(torch.tensor([ids])).logits, theirs(torch.tensor([ids])).logits)


@pytest.mark.slow
def test_a_toy_is_what_transformers_reads(tmp_path: Path) -> None:
    source = toy_parts(toy_config("llama", tie_word_embeddings=False), "row")
    check_as_transformers(write_foreign(tmp_path / "model.gguf", source, "Q8_0"))


@pytest.mark.slow
def test_the_real_model_is_what_transformers_reads() -> None:
    from wrinklefree.quickstart.source import bundled_model

    try:
        path = bundled_model()
    except MissingDependencyError:
        pytest.skip("not checked: a real GGUF file against transformers")
    check_as_transformers(path)


@pytest.mark.parametrize(
    ("name", "kind", "subln"),
    [
        ("gemma3_text", "F32", "none"),
        ("qwen3", "TQ1_0", "none"),
        ("llama", "F16", "identity"),
        ("qwen2", "Q8_0", "none"),
    ],
)
def test_families_have_their_own_class_and_numbers(name: str, kind: str, subln: str, tmp_path: Path) -> None:
    source = toy_parts(toy_config(name), "row", subln)
    path = str(write_foreign(tmp_path / "model.gguf", source, kind))
    model, _ = load_source(path)
    assert model.config.model_type == source_config(path)["model_type"] == ("bitnet" if subln != "none" else name)
    state = model.state_dict()
    codes, scales = next(part for part in source.parts if part.name.endswith("k_proj")).codes_and_scales()
    torch.testing.assert_close(
        state["model.layers.0.self_attn.k_proj.weight"], torch.from_numpy(codes * scales[:, None]), rtol=2**-10, atol=0
    )
    gains = next(part for part in source.parts if part.name == "model.norm").gains
    assert (state["model.norm.weight"].numpy() + (name == "gemma3_text") == gains).all()
    with torch.no_grad():
        assert model(torch.arange(20)[None]).logits.isfinite().all()


def test_a_file_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    path = write_foreign(
        tmp_path / "model.gguf", toy_parts(toy_config("llama")), "F16", Changes(keys={"tokenizer.ggml.model": None})
    )
    with pytest.raises(FormatError, match=r"model\.gguf: has no tokenizer"):
        load_source(str(path))
