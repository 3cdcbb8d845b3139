"""Conversion against the unconverted model (strength 0), checkpoints against the model in memory, bad sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from wrinklefree.errors import FormatError, InputError
from wrinklefree.models.convert import convert_model
from wrinklefree.models.io import CheckpointInfo, load_checkpoint, load_source, save_checkpoint
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.ternary import TernarySpec

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
SPEC = TernarySpec("group", 64)


def toy(family: str = "llama", **changes: Any) -> Any:
    torch.manual_seed(0)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, **changes)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32, **changes)).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(128)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", unk_token="w0")


def tokens(rows: int = 4, length: int = 16) -> torch.Tensor:
    return torch.randint(0, 128, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_at_strength_zero_without_norms_the_student_is_the_teacher(family: str, tied: bool) -> None:
    teacher, student = toy(family, tie_word_embeddings=tied), toy(family, tie_word_embeddings=tied)
    convert_model(student, SPEC, strength=0.0)
    assert torch.equal(teacher(tokens()).logits, student(tokens()).logits)


def test_every_projection_becomes_ternary_and_nothing_else() -> None:
    student = toy()
    convert_model(student, SPEC)
    names = {name.rpartition(".")[2] for name, _ in bit_linears(student)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(list(bit_linears(student))) == 14
    assert type(student.lm_head) is torch.nn.Linear


def test_identity_subln_keeps_the_function_where_ones_do_not() -> None:
    teacher = toy()
    cosines = {}
    for subln in ("identity", "ones"):
        student = toy()
        convert_model(student, SPEC, subln, tokens(8), strength=0.0)  # type: ignore[arg-type]
        both = teacher(tokens()).logits.flatten(), student(tokens()).logits.flatten()
        cosines[subln] = float(torch.cosine_similarity(*both, dim=0).detach())
    assert cosines["identity"] > 0.99
    assert cosines["identity"] > cosines["ones"]


def test_the_identity_is_measured_without_logits() -> None:
    """Of 16 sequences of 512 tokens and 49,152 words they would be 1.6 GB, the most that a conversion takes."""
    student, made = toy(), []
    student.lm_head.register_forward_hook(lambda *call: made.append(call))
    convert_model(student, SPEC, "identity", tokens(8))
    assert not made


def test_subln_normalises_what_the_projection_sees() -> None:
    student = toy()
    convert_model(student, SPEC, "ones", strength=0.0)
    seen = []
    down = student.model.layers[0].mlp.down_proj
    down.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    student(tokens())
    assert torch.allclose(seen[0].square().mean(-1), torch.ones(()), atol=1e-2)
    assert "model.layers.0.mlp.ffn_sub_norm.weight" in student.state_dict()
    assert "model.layers.0.self_attn.attn_sub_norm.weight" in student.state_dict()


@pytest.mark.parametrize("subln", ["none", "ones"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("learned", [False, True])
def test_a_checkpoint_is_the_model_in_memory(tmp_path: Path, subln: Any, family: str, learned: bool) -> None:
    student = toy(family)
    convert_model(student, SPEC, subln)
    if learned:
        for _, layer in bit_linears(student):
            layer.set_scale(layer.ternary()[1] * 1.2)
    save_checkpoint(student, tokenizer(), tmp_path / "out", CheckpointInfo("convert", SPEC, subln, tokens_seen=7))
    again, _, info = load_checkpoint(tmp_path / "out")
    assert torch.equal(student(tokens()).logits, again(tokens()).logits)
    assert (info.tokens_seen, info.spec, info.subln) == (7, SPEC, subln)


def test_t9_the_model_has_the_dtype_that_was_asked_for(tmp_path: Path) -> None:
    toy().save_pretrained(tmp_path / "source")
    tokenizer().save_pretrained(tmp_path / "source")
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = load_source(str(tmp_path / "source"), dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_converting_twice_and_unknown_families_are_refused() -> None:
    student = toy()
    convert_model(student, SPEC)
    with pytest.raises(InputError, match="ternary already"):
        convert_model(student, SPEC)
    other = toy()
    other.config.model_type = "phi3"
    with pytest.raises(InputError, match="fused"):
        convert_model(other, SPEC)
    other.config.model_type = "llamma"
    with pytest.raises(InputError, match="did you mean 'llama'"):
        convert_model(other, SPEC)
    with pytest.raises(InputError, match="unknown subln"):
        convert_model(toy(), SPEC, "one")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs text"):
        convert_model(toy(), SPEC, "identity")


def test_missing_and_damaged_sources(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_source(str(tmp_path / "model.gguf"))
    with pytest.raises(InputError, match="no such model"):
        load_source(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        load_source(str(tmp_path / "empty"))
    (tmp_path / "garbage.gguf").write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(FormatError, match=r"garbage\.gguf: at byte 8: found GGUF version 0"):
        load_source(str(tmp_path / "garbage.gguf"))


def _checkpoint(tmp_path: Path) -> Path:
    student = toy()
    convert_model(student, SPEC)
    save_checkpoint(student, tokenizer(), tmp_path / "out", CheckpointInfo("convert", SPEC))
    return tmp_path / "out"


def test_damaged_checkpoints_are_named_not_guessed_at(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path)
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(FormatError, match="damaged"):
        load_checkpoint(path)
    (path / "model.safetensors").write_bytes(weights)
    config = json.loads((path / "config.json").read_text())
    for change in ({"granularity": "column"}, {"format_version": 99}, {"format": "packed"}):
        broken = {**config, "wrinklefree": {**config["wrinklefree"], **change}}
        (path / "config.json").write_text(json.dumps(broken))
        with pytest.raises(FormatError, match=r"config\.json"):
            load_checkpoint(path)
    (path / "config.json").write_text("{")
    with pytest.raises(FormatError, match="JSON"):
        load_checkpoint(path)


def test_a_checkpoint_with_a_missing_norm_is_refused(tmp_path: Path) -> None:
    """Dropping unknown or missing tensors in silence once restarted whole stages from scratch."""
    path = _checkpoint(tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["wrinklefree"]["subln"] = "ones"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="attn_sub_norm"):
        load_checkpoint(path)


def test_an_existing_directory_is_left_alone(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path)
    before = (path / "config.json").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        save_checkpoint(toy(), tokenizer(), path, CheckpointInfo("convert", SPEC))
    assert (path / "config.json").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
