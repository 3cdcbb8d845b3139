"""Files of other programs run by the engine against the packed directory that an import of them writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_toys import Changes, toy_config, toy_parts, write_foreign

from wrinklefree.artifact.packed_memory import hold_packed
from wrinklefree.artifact.packed_reader import packed_parts
from wrinklefree.artifact.packed_writer import write_packed
from wrinklefree.artifact.parts import ModelParts, StoredCodes, TernaryPart, stored_tables
from wrinklefree.artifact.safetensors_file import SafetensorsFile
from wrinklefree.artifact.sources import read_parts
from wrinklefree.cli.main import main
from wrinklefree.engine.engine import Engine
from wrinklefree.engine.held import load_parts
from wrinklefree.errors import FormatError, InputError
from wrinklefree.export.gguf import GgufOptions, write_gguf
from wrinklefree.export.hf_bitnet import write_hf
from wrinklefree.export.sgl_bin import write_sgl_bin

TOKENS = [1, 2, 3, 250, 7]
BITNET = {"hidden_act": "relu2"}
# name -> (config, granularity, biases, type of the layers)
GGUF: dict[str, tuple[dict[str, Any], str, tuple[str, ...], str]] = {
    "llama TQ1_0": (toy_config("llama"), "tensor", (), "TQ1_0"),
    "llama TQ2_0 groups": (toy_config("llama"), "group", (), "TQ2_0"),
    "llama F16 rows biases": (toy_config("llama"), "row", ("q_proj", "k_proj", "v_proj", "o_proj"), "F16"),
    "llama Q8_0 untied": (toy_config("llama", tie_word_embeddings=False), "tensor", (), "Q8_0"),
    "mistral TQ2_0": (toy_config("mistral"), "tensor", (), "TQ2_0"),
    "qwen2 TQ2_0": (toy_config("qwen2"), "row", ("q_proj", "k_proj", "v_proj"), "TQ2_0"),
    "qwen3 TQ1_0": (toy_config("qwen3", head_dim=128), "tensor", (), "TQ1_0"),
    "gemma3 F16": (toy_config("gemma3_text"), "tensor", (), "F16"),
    "bitnet TQ2_0": (toy_config("bitnet", **BITNET), "tensor", (), "TQ2_0"),
}


def imported(source: Path, out: Path) -> Path:
    """What `wf import` writes: the parts as they are read, through NumPy alone."""
    parts = read_parts(source)
    out.mkdir()
    write_packed(out, parts, stored_tables(parts))
    return out


def check_run(source: Path, out: Path) -> Engine:
    direct = Engine.load(source, threads=1)
    stored = Engine.load(imported(source, out), threads=1)
    np.testing.assert_array_equal(direct.logits(TOKENS), stored.logits(TOKENS))
    assert direct.banned_tokens == stored.banned_tokens
    assert direct.bytes_per_token == stored.bytes_per_token
    assert direct.has_tokenizer == stored.has_tokenizer
    if direct.has_tokenizer:
        assert direct.tokenizer.encode("some text") == stored.tokenizer.encode("some text")
        assert direct.tokenizer.eos_ids == stored.tokenizer.eos_ids
    wrinklefree, recorded = direct.config["wrinklefree"], stored.config["wrinklefree"]
    assert {**recorded, "files": {}} == wrinklefree
    return direct


@pytest.mark.parametrize("name", GGUF)
def test_a_gguf_file_runs_as_its_import_does(name: str, tmp_path: Path) -> None:
    config, granularity, biases, kind = GGUF[name]
    source = toy_parts(config, granularity, biases=biases)
    path = write_foreign(tmp_path / "model.gguf", source, kind)
    fast = [p for p in read_parts(path).parts if isinstance(p, TernaryPart) and isinstance(p.read, StoredCodes)]
    assert bool(fast) == kind.startswith("TQ")
    engine = check_run(path, tmp_path / "packed")
    if kind.startswith("Q") or config["model_type"] == "bitnet":  # whose writer rounds scales, or means silu by bitnet
        return
    (tmp_path / "ours").mkdir()
    write_packed(tmp_path / "ours", source, stored_tables(source))
    np.testing.assert_array_equal(Engine.load(tmp_path / "ours", threads=1).logits(TOKENS), engine.logits(TOKENS))


@pytest.mark.parametrize(("model_type", "kind"), [("llama", "I2_S"), ("bitnet", "I2_S"), ("llama", "Q4_0")])
def test_a_file_of_ours_runs_as_its_import_does(model_type: str, kind: str, tmp_path: Path) -> None:
    # Rows of 320 columns are no whole blocks of 256, so that such layers become Q4_0.
    config = toy_config(
        model_type, **(BITNET if model_type == "bitnet" else {}), hidden_size=256 + 64 * (kind == "Q4_0")
    )
    path = tmp_path / "model.gguf"
    foreign = read_parts(write_foreign(tmp_path / "with_tokenizer.gguf", toy_parts(config), "F16"))
    write_gguf(path, foreign, GgufOptions("I2_S" if kind == "I2_S" else "TQ2_0"))
    layers = [part for part in read_parts(path).parts if isinstance(part, TernaryPart)]
    assert all(isinstance(layer.read, StoredCodes) for layer in layers) and layers[0].stored.type_name == kind
    check_run(path, tmp_path / "packed")


def test_blocks_of_scale_zero_hold_zeros_whatever_their_codes(tmp_path: Path) -> None:
    """A tensor's scale would bring such codes to life, so they must not be repacked as they are."""
    source = toy_parts(toy_config("llama"))
    path = write_foreign(tmp_path / "model.gguf", source)
    tensor = "blk.0.ffn_up.weight"
    from wrinklefree.artifact.gguf.container import read_gguf

    place = read_gguf(path).tensors[tensor]
    data = bytearray(path.read_bytes())
    data[place.offset + 64 : place.offset + 66] = bytes(2)
    path.write_bytes(data)
    part = next(p for p in read_parts(path).parts if p.name.endswith("up_proj"))
    assert isinstance(part, TernaryPart) and not isinstance(part.read, StoredCodes)
    assert not part.codes_and_scales()[0][0].any()
    check_run(path, tmp_path / "packed")


def test_a_directory_of_hugging_face_runs_as_its_import_does(tmp_path: Path) -> None:
    foreign = read_parts(write_foreign(tmp_path / "with_tokenizer.gguf", toy_parts(toy_config("llama"))))
    (tmp_path / "hf").mkdir()
    write_hf(tmp_path / "hf", foreign)
    check_run(tmp_path / "hf", tmp_path / "packed")


def test_a_bin_file_runs_as_its_import_does(tmp_path: Path) -> None:
    foreign = read_parts(write_foreign(tmp_path / "with_tokenizer.gguf", toy_parts(toy_config("llama"))))
    (tmp_path / "bin").mkdir()
    write_sgl_bin(tmp_path / "bin" / "model.bin", foreign)
    (tmp_path / "bin" / "tokenizer.json").write_bytes(foreign.files["tokenizer.json"])
    check_run(tmp_path / "bin" / "model.bin", tmp_path / "packed")


def test_the_verbs_take_a_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_foreign(tmp_path / "model.gguf", toy_parts(toy_config("llama")))
    packed = imported(path, tmp_path / "packed")
    (tmp_path / "text.txt").write_text("This text is scored. " * 9)
    generate = ["--prompt", "some text", "--max-tokens", "5", "--seed", "1"]
    scored = ["--perplexity", str(tmp_path / "text.txt"), "--window", "16"]
    for verb, options, same in (("generate", generate, ("text", "tokens")), ("eval", scored, ("loss", "runs_on"))):
        found = []
        for model in (path, packed):
            assert main([verb, str(model), *options, "--threads", "1", "--json", "-"]) == 0
            told = json.loads(capsys.readouterr().out)
            found.append([told[key] for key in same])
        assert found[0] == found[1]


@pytest.mark.slow
def test_bench_takes_a_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_foreign(tmp_path / "model.gguf", toy_parts(toy_config("llama")))
    assert main(["bench", str(path), "--prompt", "4", "--decode", "2", "--repeat", "1", "--threads", "1"]) == 0
    assert "model.gguf: " in capsys.readouterr().out


@pytest.mark.parametrize("embedding", ["q8", "q6", "q4", "f16"])
@pytest.mark.parametrize("layout", ["t2-r16c64", "t1.6-r16c64"])
def test_in_memory_stands_what_a_file_would_hold(embedding: Any, layout: Any, tmp_path: Path) -> None:
    rows = 4101 if embedding in ("q8", "f16") else 259  # more than one piece, where there are pieces
    model = toy_parts(toy_config("qwen3", vocab_size=rows), "row", biases=("q_proj",))
    model = replace(model, info=replace(model.info, embedding=embedding, layout=layout))
    tables = [replace(p, read_rows=lambda a, b, p=p: p.read()[a:b]) if p.name == "model.embed_tokens" else p
              for p in model.parts]  # fmt: skip
    write_packed(tmp_path, model, stored_tables(model))
    file = SafetensorsFile(tmp_path / "model.safetensors")
    for parts in (model, replace(model, parts=tuple(tables)), packed_parts(tmp_path)):
        held = hold_packed(parts)
        assert held.keys() == file.tensors.keys()
        for name, array in held.items():
            np.testing.assert_array_equal(array, file.array(name))
            assert array.ctypes.data % 64 == 0
    stored = Engine.load(tmp_path, threads=1).logits(TOKENS)
    for parts in (model, replace(model, parts=tuple(tables))):
        options = {"threads": 2, "context": 0, "kernels": "auto", "slots": 1, "kv_type": "float16"}
        native = load_parts(parts, "stored", options)
        found = np.empty((len(TOKENS), native.vocab_size), np.float32)
        native.forward(0, np.array(TOKENS, np.int32), found)
        np.testing.assert_array_equal(found, stored)


def test_layout_and_other_options_are_those_of_packed_models(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "model.gguf", toy_parts(toy_config("llama")))
    expected = Engine.load(path, threads=1)
    other = Engine.load(path, threads=2, layout="t1.6", context=32, slots=3)
    assert (expected.layout, other.layout, other.context, other.slots) == ("t2-r16c64", "t1.6-r16c64", 32, 3)
    np.testing.assert_array_equal(expected.logits(TOKENS), other.logits(TOKENS))
    with pytest.raises(InputError, match=r"keep_mapped: .* is no packed directory"):
        Engine.load(path, keep_mapped=True)


def test_what_cannot_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: found no"):
        Engine.load(tmp_path / "nowhere")
    (tmp_path / "text.gguf").write_text("text")
    with pytest.raises(FormatError, match=r"text\.gguf: is no GGUF file"):
        Engine.load(tmp_path / "text.gguf")
    nan = np.full((259, 256), np.nan, np.float32)
    changes = Changes(tensors={"token_embd.weight": nan})
    path = write_foreign(tmp_path / "nan.gguf", toy_parts(toy_config("llama")), "TQ2_0", changes)
    with pytest.raises(FormatError, match=r"nan\.gguf: token_embd\.weight: holds a value that is no finite number"):
        Engine.load(path)


def _three(model: ModelParts, path: Path) -> Path:
    from wrinklefree.artifact.gguf.container import read_gguf

    write_foreign(path, model)
    place = read_gguf(path).tensors["blk.0.ffn_gate.weight"]
    data = bytearray(path.read_bytes())
    data[place.offset] = 0xFF
    path.write_bytes(data)
    return path


def test_codes_that_are_not_ternary_are_refused_by_layer(tmp_path: Path) -> None:
    path = _three(toy_parts(toy_config("llama")), tmp_path / "three.gguf")
    with pytest.raises(FormatError, match=r"three\.gguf: model\.layers\.0\.mlp\.gate_proj: row 0: found a code"):
        Engine.load(path)
