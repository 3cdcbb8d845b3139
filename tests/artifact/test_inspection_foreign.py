"""What `inspect_model` reports of other programs' files, against the models that they were written of."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import packed_toys
import pytest
from gguf_toys import Changes, toy_config, toy_parts, write_foreign

from wrinklefree.artifact.gguf.container import read_gguf
from wrinklefree.artifact.inspection.model import inspect_model
from wrinklefree.artifact.manifest import WEIGHTS
from wrinklefree.artifact.parts import ModelParts, TernaryPart
from wrinklefree.artifact.safetensors_file import SafetensorsFile, write_safetensors
from wrinklefree.artifact.sources import read_parts
from wrinklefree.errors import FormatError
from wrinklefree.export.gguf import GgufOptions, write_gguf
from wrinklefree.export.hf_bitnet import write_hf


def zeros(model: ModelParts) -> dict[str, float]:
    return {p.name: float((p.read()[0] == 0).mean()) for p in model.parts if isinstance(p, TernaryPart)}


def some_zeros(granularity: str = "tensor") -> ModelParts:
    """A toy whose layers have different shares of zeros."""
    model = toy_parts(toy_config("llama"), granularity)
    for number, part in enumerate(model.parts):
        if isinstance(part, TernaryPart):
            part.read()[0][:, 1 : 1 + 20 * number] = 0
    return model


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "I2_S", "F16"])
def test_a_ternary_gguf_file(kind: str, tmp_path: Path) -> None:
    model, path = some_zeros(), tmp_path / "model.gguf"
    if kind == "I2_S":
        foreign = read_parts(write_foreign(tmp_path / "source.gguf", model))
        write_gguf(path, foreign, GgufOptions("I2_S"))
    else:
        write_foreign(path, model, kind)
    found = inspect_model(path)
    expected = zeros(model)
    rows = {row.name: row for row in found.tensors}
    for ours, theirs in (("self_attn.q_proj", "attn_q"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down")):
        row = rows[f"blk.0.{theirs}.weight"]
        assert row.type_name == kind and row.zeros == pytest.approx(expected[f"model.layers.0.{ours}"])
    assert rows["token_embd.weight"].zeros is None and found.scales == "one per tensor" and not found.why_not
    assert found.num_parameters == model.num_parameters
    assert found.tokenizer["kind"] == "BPE" and found.tokenizer["chat_template"] is False
    assert found.hashes == {"model.gguf": hashlib.sha256(path.read_bytes()).hexdigest()}
    whole = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert whole["engine_runs_it"] is True and whole["zeros"] == pytest.approx(found.zeros)
    assert bool(found.training) == (kind == "I2_S")  # ours say where they come from


def test_layers_that_became_q4_0(tmp_path: Path) -> None:
    model = toy_parts(toy_config("llama", hidden_size=320))
    path = tmp_path / "model.gguf"
    write_gguf(path, read_parts(write_foreign(tmp_path / "source.gguf", model, "F16")), GgufOptions("TQ2_0"))
    row = next(row for row in inspect_model(path).tensors if row.name == "blk.0.ffn_up.weight")
    assert row.type_name == "Q4_0" and row.zeros == pytest.approx(zeros(model)["model.layers.0.mlp.up_proj"])


def test_a_block_of_scale_zero_counts_as_zeros(tmp_path: Path) -> None:
    model = some_zeros()
    path = write_foreign(tmp_path / "model.gguf", model)
    tensor = read_gguf(path).tensors["blk.0.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    data[tensor.offset + 64 : tensor.offset + 66] = bytes(2)
    path.write_bytes(data)
    codes = next(p for p in model.parts if p.name.endswith("up_proj")).read()[0]  # type: ignore[union-attr,index]
    wanted = (codes == 0).sum() + (codes[0, :256] != 0).sum()
    row = next(row for row in inspect_model(path).tensors if row.name == tensor.name)
    assert row.zeros == pytest.approx(float(wanted) / codes.size)


def test_a_packed_directory_of_hugging_face(tmp_path: Path) -> None:
    model = read_parts(write_foreign(tmp_path / "model.gguf", some_zeros()))
    (tmp_path / "hf").mkdir()
    write_hf(tmp_path / "hf", model)
    found = inspect_model(tmp_path / "hf")
    rows = {row.name: row for row in found.tensors}
    for name, share in zeros(model).items():
        row, scale = rows[f"{name}.weight"], rows[f"{name}.weight_scale"]
        assert row.type_name == "U8" and row.zeros == pytest.approx(share) and scale.num_parameters == 0
        assert row.num_parameters == 4 * math.prod(row.shape)
    assert found.num_parameters == model.num_parameters and found.training["stage"] == "imported"
    assert found.architecture["quantization_config"]["quant_method"] == "bitnet"
    assert "model.safetensors" in found.hashes and "config.json" in found.hashes


def test_a_model_that_is_not_ternary_is_shown_with_the_reason(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float16)
    changes = Changes(tensors={"blk.0.attn_q.weight": noise}, keys={"general.note": float("nan")})
    found = inspect_model(write_foreign(tmp_path / "model.gguf", toy_parts(toy_config("llama")), "F16", changes))
    assert found.zeros is None and found.scales is None
    assert "blk.0.attn_q.weight (F16)" in found.why_not and "not ternary" in found.why_not
    assert found.tokenizer["kind"] == "BPE" and found.tokenizer["tokenizer.ggml.model"] == "gpt2"
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["architecture"]["general.note"] == "nan"


def test_a_hugging_face_model_in_shards(tmp_path: Path) -> None:
    model = read_parts(write_foreign(tmp_path / "model.gguf", some_zeros()))
    directory = tmp_path / "hf"
    directory.mkdir()
    write_hf(directory, model)
    file = SafetensorsFile(directory / WEIGHTS)
    arrays: dict[str, Any] = {name: np.array(file.array(name)) for name in file.tensors}
    whole = inspect_model(directory)
    names = sorted(arrays)
    for number, part in enumerate((names[::2], names[1::2])):
        write_safetensors(directory / f"part-{number}.safetensors", {name: arrays[name] for name in part})
    index = {name: f"part-{place % 2}.safetensors" for place, name in enumerate(names)}
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))
    (directory / WEIGHTS).unlink()
    assert inspect_model(directory).tensors == whole.tensors


def test_damage_is_one_error(tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "model.gguf", toy_parts(toy_config("llama")))
    data = bytearray(path.read_bytes())
    place = read_gguf(path).tensors["blk.0.ffn_gate.weight"].offset
    (tmp_path / "short.gguf").write_bytes(data[:-100])
    with pytest.raises(FormatError, match=r"short\.gguf"):
        inspect_model(tmp_path / "short.gguf")
    data[place] = 0xFF
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"model\.layers\.0\.mlp\.gate_proj: found a code that is none of"):
        inspect_model(path)
    (tmp_path / "text").write_text("text")
    with pytest.raises(FormatError, match=r"is no GGUF and no .bin file"):
        inspect_model(tmp_path / "text")


def test_the_tokenizer_of_a_packed_model(tmp_path: Path) -> None:
    found = inspect_model(packed_toys.write(tmp_path))
    assert found.tokenizer["kind"] == "BPE" and "ByteLevel" in found.tokenizer["pre_tokenizer"]
    assert found.scales == "one per 64 columns" and found.hashes.keys() == {"model.safetensors"}
