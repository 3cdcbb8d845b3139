"""Export: what is written equals the source, the verification notices what does not, failure leaves nothing.

Reference: the torch checkpoint the directory was exported from. Models are toys of two layers from a seed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import packed_toys
import pytest
import torch
import toy_checkpoints as toys

from wrinklefree.artifact.files import sha256
from wrinklefree.artifact.manifest import changed_files, open_packed
from wrinklefree.artifact.packed_writer import write_packed
from wrinklefree.artifact.packing import pack_codes, unpack_codes
from wrinklefree.artifact.safetensors_file import SafetensorsFile, write_safetensors
from wrinklefree.artifact.tables import TABLE_FORMATS, pack_table, quantize_table
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.engine import Engine, greedy
from wrinklefree.errors import FormatError, InputError, VerificationError
from wrinklefree.export import verify_written as export_module
from wrinklefree.export.export import ExportReport, export
from wrinklefree.export.tables import head_moments, quantized_tables
from wrinklefree.export.verify import check_codes, compare_engine_with_torch, exported_tables
from wrinklefree.export.walk import model_parts, walk
from wrinklefree.export.zeros import checkpoint_zeros
from wrinklefree.models.convert import convert_model
from wrinklefree.models.io import load_checkpoint
from wrinklefree.quant.bitlinear import bit_linears, quant_strength
from wrinklefree.quant.ternary import TernarySpec

CASES: dict[str, dict[str, Any]] = {
    "llama-group64": {},
    "llama-tensor-subln": {"spec": TernarySpec("tensor"), "subln": "identity"},
    "llama-untied-row": {"spec": TernarySpec("row"), "tie_word_embeddings": False},
    "qwen2-biases": {"family": "qwen2"},
    "qwen3-qk-norm-group128": {"family": "qwen3", "spec": TernarySpec("group", 128), "subln": "ones"},
    "llama-odd-sizes": {"hidden_size": 72, "head_dim": 18, "intermediate_size": 150},
}


@pytest.mark.parametrize("embedding", ["q6", "q4", "f16"])
def test_fewer_bits_are_the_same_model(tmp_path: Path, embedding: Any) -> None:
    """1.6 bits: the same values in fewer bytes; tables of every precision: engine and torch read the same numbers."""
    source = toys.write(tmp_path / "src", hidden_size=320, head_dim=80, spec=TernarySpec("row"))
    reports = {
        bits: export(source, tmp_path / bits, embedding=embedding, bits=bits, threads=1, greedy_tokens=16)
        for bits in ("2", "1.6")
    }
    for report in reports.values():
        assert report.agreement is not None and report.agreement.passed
    # 320 = 5 column blocks, 160 = 3 blocks left over in 2 bits
    assert reports["1.6"].bits_per_ternary_weight < 0.95 * reports["2"].bits_per_ternary_weight
    logits = [Engine.load(tmp_path / bits, threads=1).logits(list(range(9))) for bits in reports]
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("case", CASES)
def test_engine_follows_its_source(tmp_path: Path, case: str) -> None:
    """Every family, granularity and head: codes equal, logits agree, greedy tokens equal or tied."""
    report = export(toys.write(tmp_path / "src", **CASES[case]), tmp_path / "out", threads=1, greedy_tokens=48)
    assert report.codes is not None and report.agreement is not None
    assert report.codes.zeros_source == report.codes.zeros_written and 0.2 < report.codes.zeros_written < 0.6
    assert report.agreement.passed and report.agreement.greedy_tokens == 3 * 48
    # Measured on these toys: 0.9995 and above; a wrong rotation, norm or scale lands below 0.9.
    assert report.agreement.logit_cosine_min > 0.999 and report.agreement.noise_cosine_min > 0.99
    assert changed_files(tmp_path / "out", open_packed(tmp_path / "out").info) == []


def test_a_diffusion_model_is_compared_without_its_mask(tmp_path: Path) -> None:
    """The engine's logits of MASK are minus infinity, torch's are numbers: all others must agree."""
    marker = {"mask_token_id": 255, "block_size": 8, "token_shift": True, "variant": "causal", "clean_half": "causal"}
    report = export(toys.write(tmp_path / "src", dlm=marker), tmp_path / "out", threads=1, greedy_tokens=48)
    assert Engine.load(tmp_path / "out", threads=1).banned_tokens == (255,)
    assert report.agreement is not None and report.agreement.passed
    assert report.agreement.logit_cosine_min > 0.999 and report.agreement.noise_cosine_min > 0.99
    assert np.isfinite(report.agreement.logit_max_abs_difference)


@pytest.mark.parametrize("embedding", TABLE_FORMATS)
def test_bytes_are_the_sources(tmp_path: Path, embedding: Any) -> None:
    source = toys.write(tmp_path / "src", subln="identity", tie_word_embeddings=False)
    report = export(source, tmp_path / "out", embedding=embedding, verify=False)
    weights = open_packed(tmp_path / "out").weights
    model, _, _ = load_checkpoint(source)
    for name, layer in bit_linears(model):
        codes, scales = layer.ternary()
        np.testing.assert_array_equal(weights.array(f"{name}.weight"), pack_codes(codes.numpy()))
        stored = weights.array(f"{name}.weight_scale").transpose(0, 2, 1).reshape(-1, scales.shape[1])
        np.testing.assert_array_equal(stored[: len(scales)], scales.detach().numpy())
    for name, parameter in model.named_parameters():
        if "norm" in name:
            np.testing.assert_array_equal(weights.array(name), parameter.detach().numpy())
    for name in ("model.embed_tokens", "lm_head"):
        values = model.get_submodule(name).weight.detach().numpy()
        fitted = embedding in ("q6", "q4") and name == "lm_head"
        codes, scales = pack_table(
            quantize_table(values, embedding, head_moments(model, Tokenizer.load(source).encode) if fitted else None)
        )
        np.testing.assert_array_equal(weights.array(f"{name}.weight"), codes)
        if scales is not None:
            np.testing.assert_array_equal(weights.array(f"{name}.weight_scale"), scales)
    assert report.written_bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    written = sum(change.written_bytes for change in report.tensors)
    assert written == sum(info.num_bytes for info in weights.tensors.values())


def test_export_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = toys.write(tmp_path / "src")
    for name in ("a", "b"):
        export(source, tmp_path / name, verify=False)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_quantization_strength_does_not_change_the_bytes(tmp_path: Path) -> None:
    """A checkpoint taken in the middle of a warm-up exports its ternary weights, and is verified at full strength."""
    source = toys.write(tmp_path / "src")
    config = json.loads((source / "config.json").read_text())
    config["wrinklefree"]["strength"] = 0.25
    (source / "config.json").write_text(json.dumps(config))
    report = export(source, tmp_path / "out", threads=1)
    assert report.agreement is not None and report.agreement.passed
    assert quant_strength(load_checkpoint(source)[0]).value == 0.25


def test_comparison_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    source = toys.write(tmp_path / "src")
    export(source, tmp_path / "out", verify=False)
    model, _, _ = load_checkpoint(source)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine = Engine.load(tmp_path / "out", threads=1, kv_type="float32")
    compare_engine_with_torch(engine, model, ["abc"], greedy_tokens=4)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) and before[n].dtype == after[n].dtype for n in before)
    assert all(p.dtype == torch.float32 for p in [*model.parameters(), *model.buffers()])


def test_exported_tables_are_the_readers(tmp_path: Path) -> None:
    model, _, _ = load_checkpoint(toys.write(tmp_path / "src"))
    own = model.model.embed_tokens.weight.detach().numpy().copy()
    with exported_tables(model, quantized_tables(model, "q8")):
        seen = model.model.embed_tokens.weight.detach().numpy()
        np.testing.assert_array_equal(seen, quantize_table(own, "q8").values())
        assert not np.array_equal(seen, own)
    np.testing.assert_array_equal(model.model.embed_tokens.weight.detach().numpy(), own)


def _damage(directory: Path, name: str) -> None:
    """Flip one ternary value of one layer: the file stays valid, the model is another."""
    weights = SafetensorsFile(directory / "model.safetensors")
    arrays = {key: weights.array(key).copy() for key in weights.tensors}
    codes = unpack_codes(arrays[name], 64, 160)
    codes[0, 0] = 1 if codes[0, 0] != 1 else -1
    arrays[name] = pack_codes(codes)
    write_safetensors(directory / "model.safetensors", arrays)


def test_a_thousand_greedy_tokens(tmp_path: Path) -> None:
    """The training graph, the file and the engine give the same 1,024 tokens, or the first difference is a tie."""
    source = toys.write(tmp_path / "src", subln="identity", max_position_embeddings=2048, initializer_range=0.05)
    export(source, tmp_path / "out", verify=False)
    engine = Engine.load(tmp_path / "out", threads=1, kv_type="float32")
    found = compare_engine_with_torch(engine, load_checkpoint(source)[0], ["Once upon"], greedy_tokens=1024)
    assert found.passed and found.greedy_tokens == 1024
    assert found.greedy_tokens_equal == 1024 or found.differences[0].explained


def test_a_bfloat16_checkpoint_exports_its_own_codes(tmp_path: Path) -> None:
    """Latents stored in bfloat16: the codes are those that its training graph used, and the report names the type."""
    source = toys.write(tmp_path / "src", dtype=torch.bfloat16)
    report = export(source, tmp_path / "out", threads=1)
    assert report.agreement is not None and report.agreement.passed
    by_name = {change.name: change for change in report.tensors}
    assert by_name["model.norm"].source_type == "BF16" and by_name["model.norm"].source_bytes == 2 * 64
    model, _, _ = load_checkpoint(source, torch.bfloat16)
    weights = open_packed(tmp_path / "out").weights
    for name, layer in bit_linears(model):
        np.testing.assert_array_equal(weights.array(f"{name}.weight"), pack_codes(layer.ternary()[0].numpy()))


def test_one_wrong_code_is_noticed(tmp_path: Path) -> None:
    source = toys.write(tmp_path / "src")
    export(source, tmp_path / "out", verify=False)
    _damage(tmp_path / "out", "model.layers.1.mlp.down_proj.weight")
    with pytest.raises(VerificationError, match=r"model\.layers\.1\.mlp\.down_proj"):
        check_codes(tmp_path / "out", load_checkpoint(source)[0])


def test_a_wrong_table_is_noticed(tmp_path: Path) -> None:
    source = toys.write(tmp_path / "src")
    export(source, tmp_path / "out", embedding="q4", verify=False)
    weights = SafetensorsFile(tmp_path / "out" / "model.safetensors")
    arrays = {key: weights.array(key).copy() for key in weights.tensors}
    arrays["model.embed_tokens.weight"][3, 0, 100] ^= 1
    write_safetensors(tmp_path / "out" / "model.safetensors", arrays)
    with pytest.raises(VerificationError, match=r"model\.embed_tokens: the file's table"):
        model = load_checkpoint(source)[0]
        check_codes(
            tmp_path / "out", model, quantized_tables(model, "q4", head_moments(model, Tokenizer.load(source).encode))
        )


def test_a_wrong_engine_is_noticed_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that reads another model (other rotation) fails the comparison; the final name never appears."""
    source = toys.write(tmp_path / "src")
    real = Engine.load

    def wrong(directory: Path, **options: Any) -> Engine:
        config = json.loads((directory / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = 3.0
        (directory / "config.json").write_text(json.dumps(config))
        return real(directory, **options)

    monkeypatch.setattr(export_module.Engine, "load", wrong)
    with pytest.raises(VerificationError, match="does not behave like the source"):
        export(source, tmp_path / "out", threads=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src", "src-tokenizer"]


def test_wrong_inputs(tmp_path: Path) -> None:
    source = toys.write(tmp_path / "src")
    (tmp_path / "exists").mkdir()
    hf = tmp_path / "hf"
    toys.model().save_pretrained(hf)
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((tmp_path / "none", tmp_path / "out"), "no such model directory"),
        ((source, tmp_path / "exists"), "exists already"),
        ((source, tmp_path / "out", "gguf-tq9"), "unknown export format"),
        ((source, tmp_path / "out", "packed", "q5"), "unknown embedding precision"),
        ((source, tmp_path / "out", "packed", "q4", "1.5"), "unknown bits of a ternary weight"),
        ((hf, tmp_path / "out"), "make the model ternary first: wf convert"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            export(*arguments)
        assert not (tmp_path / "out").exists()
    export(source, tmp_path / "packed", verify=False)
    with pytest.raises(InputError, match="packed model already"):
        export(tmp_path / "packed", tmp_path / "out")


@pytest.mark.parametrize("kind", ["truncated", "garbage", "empty", "header"])
def test_damaged_sources(tmp_path: Path, kind: str) -> None:
    source = toys.write(tmp_path / "src")
    path = source / "model.safetensors"
    good = path.read_bytes()
    path.write_bytes({
        "truncated": good[: len(good) // 2], "garbage": b"\x93garbage" * 99, "empty": b"",
        "header": good[:8] + b"\xff" + good[9:],
    }[kind])  # fmt: skip
    with pytest.raises(FormatError, match=r"src"):
        export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_no_engine_can_run_is_refused(tmp_path: Path) -> None:
    source = toys.write(tmp_path / "src")
    config = json.loads((source / "config.json").read_text())
    config["hidden_act"] = "gelu"
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="hidden_act: found 'gelu'"):
        export(source, tmp_path / "out")


def test_no_space_leaves_nothing(tmp_path: Path) -> None:
    """The operating system refuses the file's size, in a process of its own."""
    source = toys.write(tmp_path / "src")
    program = f"""
import resource
from wrinklefree.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, {2**40}))
raise SystemExit(main(["export", {str(source)!r}, {str(tmp_path / "out")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no space left" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src", "src-tokenizer"]


def test_checkpoint_zeros_are_the_exported_ones(tmp_path: Path) -> None:
    source = toys.write(tmp_path / "src")
    report: ExportReport = export(source, tmp_path / "out", verify=False)
    shares = checkpoint_zeros(source)
    weights = open_packed(tmp_path / "out").weights
    assert len(shares) == 14
    name = "model.layers.1.mlp.down_proj.weight"
    assert shares[name] == pytest.approx(float((unpack_codes(weights.array(name), 64, 160) == 0).mean()))
    assert report.bits_per_ternary_weight < 2.5


def test_t18_latents_are_ternarised_before_they_are_packed_and_as_many_are_zero_as_in_torch(tmp_path: Path) -> None:
    """The source's weights are latents, none of them zero: what is packed is what the training graph multiplied by."""
    source = toys.write(tmp_path / "src")
    report = export(source, tmp_path / "out", verify=False)
    report_codes = check_codes(tmp_path / "out", load_checkpoint(source)[0])
    assert report.agreement is None and report_codes.zeros_written == report_codes.zeros_source
    model, weights = load_checkpoint(source)[0], open_packed(tmp_path / "out").weights
    for name, layer in bit_linears(model):
        assert bool((layer.weight != 0).all())
        codes = unpack_codes(weights.array(f"{name}.weight"), layer.out_features, layer.in_features)
        assert set(np.unique(codes)) == {-1, 0, 1}
        assert np.count_nonzero(codes == 0) == int((layer.ternary()[0] == 0).sum())


def test_t23_a_text_begins_with_bos_once_however_it_reaches_the_engine(tmp_path: Path) -> None:
    """As a prompt, through the chat template, and already encoded."""
    source = toys.write(tmp_path / "src")
    export(source, tmp_path / "out", verify=False)
    engine = Engine.load(tmp_path / "out", threads=1)
    tokenizer = engine.tokenizer
    chat = tokenizer.encode_chat([{"role": "user", "content": "ab"}])
    assert chat[0] == tokenizer.bos_id and chat.count(tokenizer.bos_id) == 1
    for prompt in (tokenizer.encode("ab"), tokenizer.encode("ab", bos=True)):
        assert prompt.count(tokenizer.bos_id) <= 1
    assert engine.generate("ab", greedy(1)).run().prompt_tokens == len(tokenizer.encode("ab"))


def test_a_layer_left_in_full_precision_is_refused(tmp_path: Path) -> None:
    model, _, _ = load_checkpoint(toys.write(tmp_path / "src"))
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(64, 160, bias=False)
    with pytest.raises(InputError, match=r"up_proj\.weight: a Linear stayed in full precision"):
        list(walk(model))


# Any change of these bytes is a change of the format: raise PACKED_FORMAT_VERSION and say so in docs/formats.md.
GOLDEN: dict[tuple[Any, Any], dict[str, str]] = {
    ("t2-r16c64", "q8"): {
        "model.safetensors": "2af5f77a1e4e50a5ca974c9db65b7eebbf3f3c218793b887f06e31a6009d8f58",
        "config.json": "e475bc042fe7803c4d5bf86253f8aacdda5335b50536125835cd104faf2f064f",
    },
    ("t1.6-r16c64", "q6"): {
        "model.safetensors": "702cc269055224f2647798bda2041b74e7bdf6dc4d7de63ebf1958169c366cbf",
        "config.json": "f3546fb74a4b4bc9525c30c21d4422291730200cc2b3dd02bdf0eadb1aa6817c",
    },
    ("t2-r16c64", "q4"): {
        "model.safetensors": "843ecc216398f23acaad57826e4ae397a2314a42af05a4d9c879ecb3e2c36949",
        "config.json": "3c049e230ada0f7432fb77ef296f9fff8431bd2cf7dc0ca099239c184044c056",
    },
    ("t2-r16c64", "f16"): {
        "model.safetensors": "c38235d35b049fb4870d57522a330bed475bb58828cd2fdb30b233af7e39c277",
        "config.json": "20a4cd6d13fb209738b399a1bb4451844ede8e7b0c228bb04865f2541d48fa8d",
    },
}


@pytest.mark.parametrize(("layout", "embedding"), GOLDEN)
def test_golden_bytes(tmp_path: Path, layout: Any, embedding: Any) -> None:
    """One tiny model, made of integer arithmetic so that no library's random numbers or sums matter."""
    wide = {"hidden_size": 320, "num_attention_heads": 4, "head_dim": 80}
    model = toys.model(**wide)
    with torch.no_grad():
        for parameter in model.parameters():
            mixed = torch.arange(parameter.numel()) * 2654435761 % 65521
            parameter.copy_((mixed.float() / 65536 - 0.5).reshape(parameter.shape))
    convert_model(model, TernarySpec("group", 64), subln="ones")
    for _, layer in bit_linears(model):
        shape = layer.spec.scale_shape(layer.out_features, layer.in_features)
        layer.set_scale((torch.arange(shape[0] * shape[1]).reshape(shape) % 7 + 1) / 32)
    (tmp_path / "src").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "src" / "tokenizer.json").write_text("{}")
    latents = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    write_safetensors(tmp_path / "src" / "model.safetensors", latents)
    info = replace(packed_toys.INFO, subln="ones", layout=layout, embedding=embedding)
    config = {**packed_toys.CONFIG, **wide}
    tables = quantized_tables(model, embedding)
    write_packed(tmp_path / "out", model_parts(model, tmp_path / "src", config, info), tables)
    found = {name: sha256(tmp_path / "out" / name) for name in ("model.safetensors", "config.json")}
    assert found == GOLDEN[layout, embedding]
