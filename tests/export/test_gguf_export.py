"""Export to GGUF: what the file holds equals the source bit for bit, or the export says why it cannot be written.

References: the codes and scales of the torch checkpoint; the gguf package reads the same bytes. Toys of two layers.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_checkpoints as toys
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.container import read_gguf
from wrinklefree.artifact.gguf.read_model import gguf_parts
from wrinklefree.artifact.manifest import PackedInfo
from wrinklefree.artifact.parts import ModelParts, NormPart, Part, TablePart, TernaryPart
from wrinklefree.errors import FormatError, InputError, VerificationError
from wrinklefree.export.export import ExportReport, export
from wrinklefree.export.gguf import GgufOptions, plan_gguf, write_gguf
from wrinklefree.export.source import open_source
from wrinklefree.export.written import check_parts
from wrinklefree.models.io import load_checkpoint
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.ternary import TernarySpec

TENSOR, ROW = TernarySpec("tensor"), TernarySpec("row")
FITTING: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}
NARROW: dict[str, Any] = {"hidden_size": 192, "head_dim": 48}
BIASED: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
ODD: dict[str, Any] = {"hidden_size": 72, "head_dim": 18, "intermediate_size": 150}
# Model, format, and the type that the seven projections of a layer must get.
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "padded": ({"spec": TENSOR, **FITTING, "intermediate_size": 500}, "gguf-tq2_0", "TQ2_0"),
    "subln-i2s": ({"spec": TENSOR, "subln": "identity", **FITTING}, "gguf-i2_s", "I2_S"),
    "192-qwen2-biases": ({"family": "qwen2", "spec": TENSOR, **NARROW}, "gguf-i2_s", "Q4_0"),
}
MORE: dict[str, tuple[dict[str, Any], str, str]] = {
    "tensor-tq1": ({"spec": TENSOR, **FITTING}, "gguf-tq1_0", "TQ1_0"),
    "row-tq2": ({"spec": ROW, **FITTING}, "gguf-tq2_0", "TQ2_0"),
    "group256-tq2": ({"spec": TernarySpec("group", 256), **FITTING}, "gguf-tq2_0", "TQ2_0"),
    "tensor-i2s": ({"spec": TENSOR, **FITTING}, "gguf-i2_s", "I2_S"),
    "subln-tq1": ({"spec": TENSOR, "subln": "identity", **FITTING}, "gguf-tq1_0", "TQ1_0"),
    "subln-row": ({"spec": ROW, "subln": "identity", **FITTING}, "gguf-tq2_0", "TQ2_0"),
    "llama3-rope": ({"spec": TENSOR, "rope_parameters": LLAMA3, **FITTING}, "gguf-tq1_0", "TQ1_0"),
    "biases-row-padded": ({"spec": ROW, **BIASED, **FITTING, "intermediate_size": 500}, "gguf-tq2_0", "TQ2_0"),
    "i2s-of-what-does-not-fit-it": ({}, "gguf-i2_s", "Q4_0"),
    "576": ({"spec": ROW, "hidden_size": 576, "head_dim": 144}, "gguf-tq1_0", "Q4_0"),
    "640-i2s": ({"spec": TENSOR, "hidden_size": 640, "head_dim": 160, "intermediate_size": 256}, "gguf-i2_s", "I2_S"),
    "960-odd-vocabulary": ({"spec": ROW, "hidden_size": 960, "head_dim": 240, "vocab_size": 261}, "gguf-tq2_0", "Q4_0"),
    "qwen3-untied-group64": ({"family": "qwen3", "tie_word_embeddings": False}, "gguf-tq2_0", "Q4_0"),
    "no-blocks-at-all": ({"spec": ROW, **ODD}, "gguf-tq2_0", "F16"),
}


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_each_case_is_written_read_back_and_run(tmp_path: Path, case: str) -> None:
    """Codes equal the checkpoint's, types are the expected ones, the engine follows torch on what was written."""
    changes, format, kind = {**CASES, **MORE}[case]
    report = _export(tmp_path, format, **changes)
    ternary = {c.written_type for c in report.tensors if c.name.endswith("_proj")}
    assert ternary == {kind} and not report.lossy
    assert report.codes is not None and report.codes.zeros_written == report.codes.zeros_source
    assert report.agreement is not None and report.agreement.passed and report.agreement.logit_cosine_min > 0.99
    model, found = load_checkpoint(tmp_path / "src")[0], _layers(gguf_parts(report.out))
    for name, layer in bit_linears(model):
        codes = layer.ternary()[0].numpy()
        np.testing.assert_array_equal(found[name].codes_and_scales()[0][: codes.shape[0], : codes.shape[1]], codes)
    padded = 512 if "padded" in case else model.config.intermediate_size
    assert gguf_parts(report.out).config["intermediate_size"] == padded
    for change in (c for c in report.conversions if c.kind == "exact" and c.name.endswith("_proj")):
        assert "no multiple of" in change.what or "a scale for each" in change.what


@pytest.mark.parametrize("format", ["gguf-tq1_0", pytest.param("gguf-tq2_0", marks=pytest.mark.slow), "gguf-i2_s"])
def test_t18_gguf_latents_are_ternarised_before_they_are_packed(tmp_path: Path, format: str) -> None:
    """The gguf package, or the documented bytes of I2_S, find the zeros of torch's codes; latents have none."""
    report = _export(tmp_path, format, verify=False, spec=TENSOR, **FITTING)
    file = read_gguf(report.out)
    model = load_checkpoint(tmp_path / "src")[0]
    for name, layer in bit_linears(model):
        if not name.endswith("down_proj"):
            continue
        tensor = file.tensors[f"blk.{name.split('.')[2]}.ffn_down.weight"]
        assert bool((layer.weight != 0).all())
        values = _foreign_values(tensor.type_name, np.asarray(file.data(tensor.name)), tensor.shape)
        codes, scale = layer.ternary()
        assert np.count_nonzero(values == 0) == int((codes == 0).sum())
        wanted = scale.detach().numpy() if format == "gguf-i2_s" else scale.detach().numpy().astype(np.float16)
        np.testing.assert_array_equal(values, codes.numpy() * wanted.astype(np.float32))


def test_naive_requantisation_is_impossible(tmp_path: Path) -> None:
    """Every way of putting latents, or other codes than the source's, into a file ends in an error and no file."""
    source = open_source(toys.write(tmp_path / "src", spec=TENSOR, **FITTING), "gguf")
    assert source.model is not None
    latents = {name: layer.weight.detach().numpy() for name, layer in bit_linears(source.model)}
    one = torch.ones(1).numpy()

    def with_codes(make: Any) -> ModelParts:
        parts = source.parts.parts
        made = (replace(p, read=partial(make, p)) if isinstance(p, TernaryPart) else p for p in parts)
        return replace(source.parts, parts=tuple(made))

    def absmax_codes(part: TernaryPart) -> tuple[Any, Any]:  # what TQ1_0's own quantiser would make of latents
        latent = latents[part.name]
        scale = np.abs(latent).max()
        return np.rint(latent / scale).astype(np.int8), np.array([scale], np.float32)

    def sign_codes(part: TernaryPart) -> tuple[Any, Any]:
        return np.sign(latents[part.name]).astype(np.int8), part.codes_and_scales()[1]

    with pytest.raises(FormatError, match="only ternary codes can be written, never latent weights"):
        write_gguf(tmp_path / "latents.gguf", with_codes(lambda part: (latents[part.name], one)), GgufOptions())
    with pytest.raises(FormatError, match="-1 to 1 are allowed"):
        big = np.full((256, 256), 3, np.int8)
        write_gguf(tmp_path / "big.gguf", with_codes(lambda part: (np.resize(big, part.shape), one)), GgufOptions())
    for number, wrong in enumerate((absmax_codes, sign_codes)):
        # Other codes than the source's can be made by hand; then the verification finds them.
        write_gguf(tmp_path / f"{number}.gguf", with_codes(wrong), GgufOptions())
        with pytest.raises(VerificationError, match="q_proj: the file's codes are not the source's"):
            check_parts(plan_gguf(source.parts, GgufOptions()).written, gguf_parts(tmp_path / f"{number}.gguf"))
    assert not list(tmp_path.glob("latents*")) and not list(tmp_path.glob("big*"))


def test_a_file_with_requantised_codes_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that ternarises once more, by absmean of what is ternary already, is caught by the export itself."""
    from wrinklefree.export import gguf as module

    real = module.encode

    def again(kind: Any, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.uint8]:
        return real(kind, codes, (scales * np.abs(codes).mean()).astype(np.float16).astype(np.float32))

    monkeypatch.setattr(module, "encode", again)
    source = toys.write(tmp_path / "src", spec=TENSOR, **FITTING)
    with pytest.raises(VerificationError, match="the file's scales are not what the source's became"):
        export(source, tmp_path / "out.gguf", "gguf-tq2_0", threads=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src", "src-tokenizer"]


def test_what_gguf_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """One line each: the part, why, and the formats that hold it."""
    cases: list[tuple[dict[str, Any], str, dict[str, Any], str]] = [
        ({"spec": ROW, **FITTING}, "gguf-i2_s", {}, "q_proj: has a scale for each row, I2_S has one .* gguf-tq1_0"),
        ({"family": "qwen3", "spec": TENSOR}, "gguf-i2_s", {}, "only bitnet.cpp reads I2_S"),
        ({"subln": "ones", "tie_word_embeddings": False}, "gguf-tq2_0", {}, "no output head of its own"),
        ({"spec": TENSOR, **NARROW}, "gguf-tq1_0", {"fallback": "none"}, "192 columns .*fallback"),
        (ODD, "gguf-tq1_0", {}, "no other type of GGUF does"),
        ({"spec": TENSOR, **ODD}, "gguf-tq1_0", {"embedding": "q8_0"}, "Give --embedding f16"),
        ({}, "gguf-tq1_0", {"embedding": "q3"}, "unknown embedding precision"),
        ({}, "gguf-tq1_0", {"fallback": "q3"}, "unknown type for what does not fit"),
    ]  # fmt: skip
    for number, (changes, format, options, message) in enumerate(cases):
        source = toys.write(tmp_path / f"{number}", **changes)
        with pytest.raises(InputError, match=message):
            export(source, tmp_path / "out.gguf", format, threads=1, **options)
        assert not (tmp_path / "out.gguf").exists() and not list(tmp_path.glob(".*"))


def test_lossy_shows_the_damage(tmp_path: Path) -> None:
    """I2_S of a model with a scale per row: one scale for each layer, the nearest, and the loss before and after."""
    report = _export(tmp_path, "gguf-i2_s", lossy=True, spec=ROW, **FITTING)
    assert report.lossy and report.engines is not None and report.engines.loss_source is not None
    assert report.engines.logit_cosine_mean < 0.999  # the damage is real, and measured
    assert report.to_json()["engines"]["loss_written"] == report.engines.loss_written
    found, model = _layers(gguf_parts(report.out)), load_checkpoint(tmp_path / "src")[0]
    name, layer = next(iter(bit_linears(model)))
    codes, scales = (values.detach().numpy() for values in layer.ternary())
    step = float(found[name].codes_and_scales()[1][0])
    errors = [np.square(codes * (scales[:, None] - s)).sum() for s in (step * 0.99, step, step * 1.01)]
    assert errors[1] == min(errors)


@pytest.mark.slow
def test_a_packed_model_and_a_gguf_file_are_sources_too(tmp_path: Path) -> None:
    """Checkpoint -> packed -> TQ2_0 -> TQ1_0 -> packed: the same codes and scales at every station."""
    source = toys.write(tmp_path / "src", spec=TernarySpec("group", 256), **FITTING)
    export(source, tmp_path / "packed", verify=False, embedding="f16")
    stations = [
        export(tmp_path / "packed", tmp_path / "2.gguf", "gguf-tq2_0", threads=1, greedy_tokens=8),
        export(tmp_path / "2.gguf", tmp_path / "1.gguf", "gguf-tq1_0", threads=1, greedy_tokens=8),
        export(tmp_path / "1.gguf", tmp_path / "again", "packed", "f16", threads=1, greedy_tokens=8),
    ]
    for report in stations:
        assert report.engines is not None and report.engines.logit_max_abs_difference == 0 and not report.conversions
        assert report.engines.loss_source == report.engines.loss_written
    first, last = (tmp_path / name / "model.safetensors" for name in ("packed", "again"))
    assert first.read_bytes() == last.read_bytes()


# sha256 of the file of `_golden`: a change of a byte has to be meant.
GOLDEN = {
    "TQ1_0": "15f279e6929f67574f29280756bdda6ac13e68c7bbb312ea92c3bb4f6098f301",
    "TQ2_0": "e7fd4080ef8d680e544060bd9fb18734bbd22f954c4f2ebb29b54cfe344f5108",
    "I2_S": "4482527da970570f3d5a659b0a1cb908abebbdce0fca630a0bea110464703185",
}


@pytest.mark.parametrize("ternary", GOLDEN)
def test_golden_file(tmp_path: Path, ternary: str) -> None:
    path = tmp_path / "golden.gguf"
    write_gguf(path, _model("tensor", 64, (512, 256)), GgufOptions(ternary))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == GOLDEN[ternary]


@settings(max_examples=12, deadline=None)
@given(
    granularity=st.sampled_from([("tensor", 64), ("row", 64), ("group", 64), ("group", 128), ("group", 256)]),
    columns=st.sampled_from([32, 64, 96, 128, 192, 256, 512, 576]),
    inner=st.sampled_from([32, 160, 256, 320, 500]),
    ternary=st.sampled_from(["TQ1_0", "TQ2_0", "I2_S"]),
    fallback=st.sampled_from(["q4_0", "q2_0", "q8_0", "f16"]),
    seed=st.integers(0, 1 << 16),
)
def test_round_trip_is_exact(
    granularity: tuple[str, int], columns: int, inner: int, ternary: str, fallback: str, seed: int
) -> None:
    """Any sizes and scales: what is read back equals what was planned, and the plan's codes are the model's."""
    model = _model(*granularity, (columns, inner), seed)
    options = GgufOptions(ternary, fallback=fallback)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.gguf"
        try:
            plan = plan_gguf(model, options)
        except InputError as error:
            assert "nothing was written" in str(error)
            return
        plan.write(path)
        check_parts(plan.written, gguf_parts(path))
        for part, fitted in zip(model.parts, plan.fitted.parts, strict=True):
            if isinstance(part, TernaryPart) and isinstance(fitted, TernaryPart):
                ours, theirs = part.codes_and_scales(), fitted.codes_and_scales()
                np.testing.assert_array_equal(ours[0], theirs[0])
                np.testing.assert_allclose(ours[1], theirs[1], rtol=2**-11)


def _model(granularity: Any, group_size: int, sizes: tuple[int, int], seed: int = 0) -> ModelParts:
    """A llama of one layer from a seed, ``sizes`` hidden and inner, with no torch in it."""
    hidden, inner = sizes
    random = np.random.default_rng(seed)
    heads = 2
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": heads,
        "head_dim": hidden // heads, "vocab_size": 258, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "hidden_act": "silu",
        "tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 257,
    }  # fmt: skip
    shapes = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    parts: list[Part] = []
    table = random.standard_normal((258, hidden)).astype(np.float16).astype(np.float32)
    parts.append(TablePart("model.embed_tokens", (258, hidden), lambda: table))
    for name, (rows, columns) in shapes.items():
        codes = random.integers(-1, 2, (rows, columns)).astype(np.int8)
        shape = {"tensor": (1,), "row": (rows,), "group": (rows, -(-columns // group_size))}[granularity]
        scales = (random.random(shape) + 0.01).astype(np.float16 if granularity == "group" else np.float32)
        wide = scales.astype(np.float32)
        parts.append(TernaryPart(f"model.layers.0.{name}", (rows, columns), partial(_pair, codes, wide)))
    for name in ("model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"):
        parts.append(NormPart(name, random.random(hidden).astype(np.float32)))
    info = PackedInfo(granularity, group_size, "f16", "none", "stage2_pretrain")
    return ModelParts("toy", config, info, tuple(parts), _tokenizer_files())


def _pair(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    return codes, scales


def _tokenizer_files() -> dict[str, bytes]:
    import tokenizer_toys

    with tempfile.TemporaryDirectory() as directory:
        tokenizer_toys.write(Path(directory) / "tokenizer")
        return {path.name: path.read_bytes() for path in (Path(directory) / "tokenizer").iterdir()}


def _export(tmp_path: Path, format: str, verify: bool = True, lossy: bool = False, **changes: Any) -> ExportReport:
    source = toys.write(tmp_path / "src", **changes)
    return export(source, tmp_path / "out.gguf", format, verify=verify, lossy=lossy, threads=1, greedy_tokens=12)


def _layers(model: ModelParts) -> dict[str, TernaryPart]:
    return {part.name: part for part in model.parts if isinstance(part, TernaryPart)}


def _foreign_values(kind: str, data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The values of a tensor by the gguf package, or of I2_S by its documented bytes for x86."""
    if kind != "I2_S":
        from gguf import GGMLQuantizationType, quants

        return quants.dequantize(data.reshape(shape[0], -1), GGMLQuantizationType[kind]).astype(np.float32)
    rows, columns = shape
    blocks = data[: rows * columns // 4].reshape(-1, 32)
    codes = np.stack([blocks >> shift & 3 for shift in (6, 4, 2, 0)], axis=1).reshape(rows, columns).astype(np.int8) - 1
    return codes * data[rows * columns // 4 :][:4].view(np.float32)[0]
