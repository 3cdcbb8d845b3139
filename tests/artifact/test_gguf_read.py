"""GGUF files that the `gguf` package wrote, as parts: equal to the model they were written of, or one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_toys import Changes, toy_config, toy_parts, write_foreign
from numpy.typing import NDArray

from wrinklefree.artifact.config import parse_config
from wrinklefree.artifact.gguf.container import GgufWriter, read_gguf
from wrinklefree.artifact.gguf.names import tensor_name
from wrinklefree.artifact.gguf.read_model import gguf_parts
from wrinklefree.artifact.gguf.ternary_types import encode
from wrinklefree.artifact.gguf.types import dequantize, gguf_type
from wrinklefree.artifact.packed_writer import write_packed
from wrinklefree.artifact.parts import ModelParts, NormPart, Part, StoredCodes, TablePart, TernaryPart, stored_tables
from wrinklefree.artifact.sources import read_parts
from wrinklefree.errors import FormatError, InputError

BITNET = {"hidden_act": "silu"}
CASES: dict[str, tuple[dict[str, Any], Any, str, tuple[str, ...], str]] = {
    # name -> config, granularity, SubLN, layers with a bias, type of the layers
    "llama TQ1_0": (toy_config("llama"), "tensor", "none", (), "TQ1_0"),
    "llama TQ2_0 groups": (toy_config("llama", tie_word_embeddings=False), "group", "none", (), "TQ2_0"),
    "llama F16 rows biases": (toy_config("llama"), "row", "none", ("q_proj", "k_proj", "down_proj"), "F16"),
    "mistral BF16": (toy_config("mistral"), "row", "none", (), "BF16"),
    "qwen2 F32": (toy_config("qwen2"), "row", "none", ("q_proj", "k_proj", "v_proj"), "F32"),
    "qwen3 TQ2_0": (toy_config("qwen3", head_dim=128), "tensor", "none", (), "TQ2_0"),
    "gemma3 TQ1_0": (toy_config("gemma3_text"), "tensor", "none", (), "TQ1_0"),
    "bitnet TQ2_0": (toy_config("bitnet", **BITNET), "tensor", "none", (), "TQ2_0"),
}


def weights(part: TernaryPart) -> NDArray[np.float32]:
    codes, scales = part.codes_and_scales()
    wide = scales[:, None] if scales.ndim == 1 else np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)
    return codes * wide


def check_equal(read: ModelParts, source: ModelParts) -> None:
    """Compare every number, bit for bit."""
    assert [part.name for part in read.parts] == [part.name for part in source.parts]
    for found, wanted in zip(read.parts, source.parts, strict=True):
        if isinstance(wanted, TernaryPart):
            assert isinstance(found, TernaryPart)
            assert (found.codes_and_scales()[0] == wanted.codes_and_scales()[0]).all(), found.name
            assert (weights(found) == weights(wanted)).all(), found.name
            assert (found.bias is None) == (wanted.bias is None)
            assert wanted.bias is None or found.bias is None or (found.bias == wanted.bias).all()
        elif isinstance(wanted, TablePart):
            assert isinstance(found, TablePart)
            assert (found.read() == wanted.read()).all(), found.name
        else:
            assert isinstance(found, NormPart)
            assert (found.gains == wanted.gains).all(), found.name


@pytest.mark.parametrize("name", CASES)
def test_a_foreign_file_gives_the_model_it_was_written_of(name: str, tmp_path: Path) -> None:
    config, granularity, subln, biases, kind = CASES[name]
    source = toy_parts(config, granularity, subln, biases)
    read = read_parts(write_foreign(tmp_path / "model.gguf", source, kind))
    check_equal(read, source)
    assert (read.info.granularity, read.info.embedding, read.info.stage) == (granularity, "f16", "imported")
    # What a packed directory of either would hold is the same file, so the engine computes the same logits.
    for directory, model in (("ours", source), ("theirs", read)):
        (tmp_path / directory).mkdir()
        write_packed(tmp_path / directory, model, stored_tables(model))
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "theirs/model.safetensors").read_bytes()
    assert "tokenizer.json" in read.files


def test_the_engine_computes_the_same_logits(tmp_path: Path) -> None:
    from wrinklefree.engine.engine import Engine

    source = toy_parts(toy_config("llama", num_hidden_layers=2), "tensor")
    read = gguf_parts(write_foreign(tmp_path / "model.gguf", source, "TQ1_0"))
    found = []
    for directory, model in (("ours", source), ("theirs", read)):
        (tmp_path / directory).mkdir()
        write_packed(tmp_path / directory, model, stored_tables(model))
        found.append(Engine.load(tmp_path / directory, threads=1).logits([1, 2, 3, 4, 5]))
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("architecture", ["bitnet-b1.58", "bitnet-25"])
def test_the_published_2b_4t_layout(architecture: str, tmp_path: Path) -> None:
    """Keys, tensors and types as in microsoft/bitnet-b1.58-2B-4T-gguf's ggml-model-i2_s.gguf, at toy sizes."""
    source = toy_parts(toy_config("bitnet", hidden_act="relu2", rope_parameters=ROPE, rms_norm_eps=1e-5))
    keys = {
        "general.architecture": architecture,
        "general.name": "bitnet2b",
        f"{architecture}.vocab_size": 259,
        f"{architecture}.context_length": 128,
        f"{architecture}.embedding_length": 256,
        f"{architecture}.block_count": 1,
        f"{architecture}.feed_forward_length": 512,
        f"{architecture}.rope.dimension_count": 64,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.head_count_kv": 2,
        "tokenizer.ggml.add_bos_token": True,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 500000.0,
        "general.file_type": 40,
        "general.quantization_version": 2,
    }
    kinds = {TernaryPart: "I2_S", TablePart: "F16", NormPart: "F32"}
    named = [(tensor_name(part.name, architecture) + ".weight", part) for part in source.parts]
    table = [(name, gguf_type(kinds[type(part)]), _shape(part)) for name, part in named]
    path = tmp_path / "ggml-model-i2_s.gguf"
    with GgufWriter(path, keys, table) as writer:
        for name, part in named:
            writer.write(name, _bytes(part))
    read = read_parts(path)
    check_equal(read, source)
    # The graph of bitnet.cpp: relu2, rotary embedding over halves (no row moves), the head is the embedding.
    assert parse_config(read.config, "read") == parse_config(source.config, "source")
    assert read.config["architectures"] == ["BitNetForCausalLM"]
    assert (read.info.granularity, read.info.subln, dict(read.files)) == ("tensor", "none", {})


ROPE = {"rope_type": "default", "rope_theta": 500000.0}


def _shape(part: Part) -> tuple[int, ...]:
    return part.gains.shape if isinstance(part, NormPart) else part.shape


def _bytes(part: Part) -> NDArray[Any]:
    if isinstance(part, NormPart):
        return part.gains
    if isinstance(part, TablePart):
        return part.read().astype(np.float16)
    return encode(gguf_type("I2_S"), *part.codes_and_scales())


def test_a_scale_beside_a_layer_multiplies_it(tmp_path: Path) -> None:
    source = toy_parts(toy_config("bitnet", **BITNET))
    extra = {"blk.0.attn_q.scale": np.array([4.0], np.float32)}
    read = gguf_parts(write_foreign(tmp_path / "model.gguf", source, "TQ2_0", Changes(tensors=extra)))
    layer, plain = (
        next(part for part in model.parts if isinstance(part, TernaryPart) and part.name.endswith("q_proj"))
        for model in (read, source)
    )
    assert (weights(layer) == 4 * weights(plain)).all()


def test_a_bitnet_graph_takes_the_embedding_as_its_head(tmp_path: Path) -> None:
    source = toy_parts(toy_config("bitnet", **BITNET))
    table = next(part for part in source.parts if isinstance(part, TablePart)).read().astype(np.float16)
    same = Changes(tensors={"output.weight": table})
    read = gguf_parts(write_foreign(tmp_path / "model.gguf", source, "TQ2_0", same))
    assert read.config["tie_word_embeddings"] is True
    check_equal(read, source)
    other = Changes(tensors={"output.weight": table[::-1].copy()})
    with pytest.raises(FormatError, match=r"output\.weight: differs from token_embd\.weight"):
        gguf_parts(write_foreign(tmp_path / "other.gguf", source, "TQ2_0", other))


def test_a_scale_below_zero_is_kept_by_every_way_through(tmp_path: Path) -> None:
    from wrinklefree.engine.engine import Engine

    source = toy_parts(toy_config("llama"))
    path = write_foreign(tmp_path / "model.gguf", source, "TQ2_0")
    place = read_gguf(path).tensors["blk.0.ffn_up.weight"].offset
    raw = bytearray(path.read_bytes())
    raw[place + 65] ^= 0x80  # the sign of the first row's float16 scale
    path.write_bytes(raw)
    read = gguf_parts(path)
    layer, plain = (
        next(part for part in model.parts if isinstance(part, TernaryPart) and part.name.endswith("up_proj"))
        for model in (read, source)
    )
    wanted = weights(plain)
    wanted[0] *= -1
    assert (weights(layer) == wanted).all()
    (tmp_path / "packed").mkdir()
    write_packed(tmp_path / "packed", read, stored_tables(read))
    found = [Engine.load(place, threads=1).logits([1, 2, 3]) for place in (tmp_path / "packed", path)]
    assert (found[0] == found[1]).all()


def test_the_origin_is_taken_and_checked(tmp_path: Path) -> None:
    source = toy_parts(toy_config("llama"), subln="identity")
    marker = {"mask_token_id": 258, "block_size": 4, "token_shift": True, "variant": "causal", "clean_half": "causal"}
    origin = {"origin_version": 1, "stage": "stage2", "subln": "identity", "dlm": marker, "tokens_seen": 7}
    changes = Changes(keys={"wrinklefree.origin": json.dumps(origin)})
    read = gguf_parts(write_foreign(tmp_path / "model.gguf", source, "TQ2_0", changes))
    check_equal(read, source)
    assert (read.info.stage, read.info.subln, read.info.tokens_seen) == ("stage2", "identity", 7)
    assert read.info.dlm == marker
    assert read.config["model_type"] == "llama"
    without = gguf_parts(write_foreign(tmp_path / "without.gguf", source, "TQ2_0"))
    assert (without.config["model_type"], without.info.subln) == ("bitnet", "none")
    for text, why in (("[]", "an object is needed"), ("{", "not valid JSON"), ("{}", "origin_version: found nothing")):
        changes = Changes(keys={"wrinklefree.origin": text})
        with pytest.raises(FormatError, match=why):
            gguf_parts(write_foreign(tmp_path / "damaged.gguf", source, "TQ2_0", changes))


NAN = np.full((256, 256), np.nan, np.float32)
DAMAGE: dict[str, tuple[Changes, str]] = {
    "missing tensor": (Changes(tensors={"blk.0.ffn_up.weight": None}), "blk.0.ffn_up.weight is missing"),
    "wrong shape": (
        Changes(tensors={"blk.0.attn_q.weight": np.ones((256, 512), np.float32)}),
        r"blk.0.attn_q.weight: found the shape \[256, 512\], \[256, 256\] is needed",
    ),
    "NaN scale": (Changes(tensors={"blk.0.attn_q.weight": NAN}), "blk.0.attn_q.weight .F16.: .* no|not ternary"),
    "not ternary": (
        Changes(tensors={"blk.0.attn_v.weight": np.arange(128 * 256, dtype=np.float32).reshape(128, 256) / 40000}),
        "blk.0.attn_v.weight .F16.: .*not ternary.*wf convert",
    ),
    "NaN norm": (
        Changes(tensors={"output_norm.weight": NAN[0]}),
        "output_norm.weight: holds a value that is no finite",
    ),
    "unknown tensor": (Changes(tensors={"blk.1.attn_q.weight": NAN}), "unknown tensor blk.1.attn_q.weight"),
    "unknown architecture": (Changes(keys={"general.architecture": "mamba"}), "unknown GGUF architecture 'mamba'"),
    "missing key": (Changes(keys={"llama.embedding_length": None}), "has no key 'llama.embedding_length'"),
    "wrong value": (Changes(keys={"llama.block_count": 0}), "llama.block_count: found 0, an integer from 1"),
    "rope": (Changes(keys={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}), "found 'yarn'"),
    "part of a rope": (Changes(keys={"llama.rope.dimension_count": 32}), "rope.dimension_count: found 32"),
    "experts": (Changes(tensors={"blk.0.ffn_gate_inp.weight": NAN}), "a mixture of experts cannot be read"),
    "fused": (Changes(tensors={"blk.0.attn_qkv.weight": NAN}), "fused into one tensor cannot be read"),
    "shard": (Changes(keys={"split.count": 3}), "one of several files"),
    "bias": (Changes(tensors={"blk.0.attn_q.bias": NAN[0]}), "attn_q.bias: holds a value that is no finite number"),
    "scale": (Changes(tensors={"blk.0.attn_q.scale": NAN[0, :1]}), "attn_q.scale: holds a value that is no finite"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_clear_error(name: str, tmp_path: Path) -> None:
    changes, why = DAMAGE[name]
    source = toy_parts(toy_config("llama"))
    path = write_foreign(tmp_path / "model.gguf", source, "F16", changes)
    with pytest.raises(FormatError, match=why) as caught:
        read_parts(path)
    assert str(path) in str(caught.value)


def test_what_is_no_ternary_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no such model"):
        read_parts(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(FormatError, match="is no GGUF file"):
        read_parts(tmp_path / "text")
    (tmp_path / "config.json").write_text('{"wrinklefree": {"format": "checkpoint"}}')
    with pytest.raises(InputError, match="wf export"):
        read_parts(tmp_path)


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_negative_scales_keep_their_sign(kind: str, tmp_path: Path) -> None:
    """Some programs' blocks have them; codes, scales and rows for the engine must agree on whose the sign is."""
    path = write_foreign(tmp_path / "toy.gguf", toy_parts(toy_config("llama"), "group"), kind)
    tensor = read_gguf(path).tensors["blk.0.ffn_gate.weight"]
    content = bytearray(path.read_bytes())
    for block in range(0, tensor.num_bytes // tensor.type.block_bytes, 2):
        content[tensor.offset + (block + 1) * tensor.type.block_bytes - 1] ^= 0x80
    path.write_bytes(content)
    file = read_gguf(path)
    expected = dequantize(tensor.type, file.data(tensor.name), tensor.shape)
    assert (expected < 0).any()
    part = next(part for part in gguf_parts(path).parts if part.name.endswith("gate_proj"))
    assert isinstance(part, TernaryPart) and (weights(part) == expected).all()
    assert (part.codes_and_scales()[1] > 0).all()


def test_weights_for_rotated_inputs_are_refused(tmp_path: Path) -> None:
    """PrismML's fork multiplies them with inputs that were rotated first; without that they compute nothing."""
    keys = {"prism.hadamard.block_size": 128}
    path = write_foreign(tmp_path / "toy.gguf", toy_parts(toy_config("qwen3")), "TQ2_0", Changes(keys=keys))
    with pytest.raises(FormatError, match="rotated inputs"):
        gguf_parts(path)


def test_ternary_values_of_q4_0_that_are_not_one(tmp_path: Path) -> None:
    """A program that stores 10 and 6 where we store 9 and 7: the factor belongs to the scale, for the engine too."""
    path = write_foreign(tmp_path / "toy.gguf", toy_parts(toy_config("llama")), "Q4_0")
    content, codes = bytearray(path.read_bytes()), {}
    for number, tensor in enumerate(t for t in read_gguf(path).tensors.values() if t.type.name == "Q4_0"):
        codes[tensor.name] = np.random.default_rng(number).integers(-1, 2, tensor.shape).astype(np.int8)
        blocks = encode(tensor.type, codes[tensor.name], np.array([0.25], np.float32)).reshape(-1, 18).copy()
        nibbles = (codes[tensor.name] * 2 + 8).astype(np.uint8).reshape(-1, 32)
        blocks[:, 2:] = nibbles[:, :16] | nibbles[:, 16:] << 4
        content[tensor.offset : tensor.offset + tensor.num_bytes] = blocks.tobytes()
    path.write_bytes(content)
    part = next(part for part in gguf_parts(path).parts if part.name.endswith("gate_proj"))
    assert isinstance(part, TernaryPart) and not isinstance(part.read, StoredCodes)
    assert (weights(part) == codes["blk.0.ffn_gate.weight"] * np.float32(0.5)).all()
