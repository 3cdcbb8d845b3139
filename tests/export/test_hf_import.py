"""Hugging Face directories of others, as they are published, at toy size: what is read is what their owner computes.

References: transformers' own classes on the same directory; transformers' own packing and ternarising functions; the
codes and scales that a directory was written from.

What each side does to activations: transformers' BitNet layers round those of each token to 8 bits, by 127 / max|x| and
half to even; the engine does exactly that too. So logits differ by the order of float32 sums only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_hf_bitnet as hf
import tokenizer_toys
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.bitnet import BitLinear, WeightQuant, pack_weights, unpack_weights

from wrinklefree.artifact.huggingface.bitnet_layout import pack_rows, step_of, stored_scale, unpack_rows
from wrinklefree.artifact.huggingface.read_model import hf_parts
from wrinklefree.artifact.parts import ModelParts, TablePart, TernaryPart, stored_tables
from wrinklefree.artifact.safetensors_file import SafetensorsFile
from wrinklefree.engine import SamplingParams
from wrinklefree.errors import FormatError
from wrinklefree.export.hf_bitnet import write_hf

SIZES: dict[str, Any] = {
    "vocab_size": 258, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 256, "eos_token_id": 257,
    "initializer_range": 0.2,
}  # fmt: skip
OFFLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
# What Falcon-E's config.json says: the default class, which divides, and no mode.
FALCON = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """See test_hf_bitnet.py."""
    with torch.compiler.set_stance("force_eager"):
        yield


def published(directory: Path, quantization: dict[str, Any], family: str = "bitnet", **changes: Any) -> Path:
    """A random model as its owner publishes it: bfloat16, each matrix packed with a scale, or latents when online."""
    torch.manual_seed(0)
    kinds: dict[str, Any] = {"bitnet": (BitNetConfig, BitNetForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    config_class, model_class = kinds[family]
    model = model_class(config_class(**{**SIZES, "tie_word_embeddings": True, **changes})).bfloat16()
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if changes.get("tie_word_embeddings", True):
        state.pop("lm_head.weight")
    for name in [
        name for name in state if name.endswith("proj.weight") and quantization.get("quantization_mode") != "online"
    ]:
        ratio = 1 / state[name].abs().mean()
        codes = (state[name] * ratio).round().clamp(-1, 1)
        state[name] = pack_weights(codes)
        scale = 1 / ratio if quantization.get("linear_class") == "autobitlinear" else ratio
        state[f"{name}_scale"] = scale.reshape(1)
    for name in state:
        if "norm" in name:
            state[name] = (state[name] + 0.2 * torch.randn(state[name].shape)).bfloat16()
    directory.mkdir()
    config = {**json.loads(model.config.to_json_string(use_diff=False)), "dtype": "bfloat16"}
    config |= {"architectures": [model_class.__name__], "quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer_toys.write(directory)
    return directory


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_engine_agrees(directory: Path, scratch: Path, needed: float = 0.9999) -> None:
    """The engine on the imported directory against transformers on the directory itself, computing in float32."""
    owner = torch.nn.Module.float(AutoModelForCausalLM.from_pretrained(directory).eval())
    for module in owner.modules():
        if isinstance(module, BitLinear):
            module.dtype = torch.float32
    engine = hf.engine_of(hf_parts(directory), scratch)
    prompt = list(range(3, 43))
    ours, theirs = torch.from_numpy(np.asarray(engine.logits(prompt))), hf.logits(owner, len(prompt))
    assert torch.nn.functional.cosine_similarity(ours, theirs).min() > needed


def test_what_transformers_saves_packed_gives_its_logits_in_the_engine(tmp_path: Path) -> None:
    """transformers' BitNetForCausalLM with random weights, through its own save_pretrained."""
    source = published(tmp_path / "src", FALCON)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved")
    tokenizer_toys.write(tmp_path / "saved")
    assert SafetensorsFile(tmp_path / "saved" / "model.safetensors").tensors[
        "model.layers.0.mlp.up_proj.weight"
    ].shape == (40, 64)
    assert_engine_agrees(tmp_path / "saved", tmp_path / "packed")


@pytest.mark.parametrize(
    ("family", "quantization", "changes"),
    [
        ("bitnet", OFFLINE, {}),
        pytest.param("llama", FALCON, {"tie_word_embeddings": False}, marks=pytest.mark.slow),
        pytest.param("llama", FALCON, {"attention_bias": True}, marks=pytest.mark.slow),
        pytest.param("llama", OFFLINE, {"attention_bias": True}, marks=pytest.mark.slow),
    ],
)
def test_published_layouts_give_their_owners_logits(
    tmp_path: Path, family: str, quantization: dict[str, Any], changes: dict[str, Any]
) -> None:
    """BitNet b1.58 2B4T (bitnet, relu2, factors) and Falcon-E (llama, silu, divisors)."""
    directory = published(tmp_path / "src", quantization, family, **changes)
    found = hf_parts(directory)
    assert found.info.granularity == "tensor" and "quantization_config" not in found.config
    assert_engine_agrees(directory, tmp_path / "packed")


def test_latents_are_ternarised_once_by_the_rule_of_their_owner(tmp_path: Path) -> None:
    """Reference: transformers' WeightQuant on the bfloat16 latents, codes and scales bit for bit."""
    directory = published(tmp_path / "src", ONLINE)
    latents = load_file(directory / "model.safetensors")
    for part in hf_parts(directory).parts:
        if isinstance(part, TernaryPart):
            codes, scales = part.codes_and_scales()
            with torch.no_grad():
                expected = WeightQuant.apply(latents[f"{part.name}.weight"])
            assert expected.dtype == torch.bfloat16
            np.testing.assert_array_equal(codes * scales, expected.float().numpy())


def test_shards_are_read_and_their_index_is_checked(tmp_path: Path) -> None:
    directory = published(tmp_path / "src", FALCON)
    whole = hf_parts(directory)
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(state)
    files = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, members in files.items():
        save_file({name: state[name] for name in members}, directory / file)
    mapping = {name: file for file, members in files.items() for name in members}
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": mapping}))
    hf.assert_same_parts(hf_parts(directory), whole)
    first = names[0]
    for damage, message in (
        ({first: "../src/model-00001-of-00002.safetensors"}, "a plain"),
        ({first: "/etc/passwd"}, "a plain"),
        ({first: 3}, "a plain"),
        ({first: "model-00002-of-00002.safetensors"}, "stands in model-00001"),
        ({"ghost.weight": "model-00001-of-00002.safetensors"}, "ghost.weight: is not in"),
        ({"ghost.weight": "model-00003-of-00002.safetensors"}, "cannot be read"),
    ):
        index.write_text(json.dumps({"weight_map": {**mapping, **damage}}))
        with pytest.raises(FormatError, match=message):
            hf_parts(directory)
    index.write_text(json.dumps({"weight_map": [1]}))
    with pytest.raises(FormatError, match="weight_map: an object"):
        hf_parts(directory)


GROUP = 128


def bonsai(directory: Path, mlx: bool) -> tuple[dict[str, np.ndarray[Any, Any]], Path]:
    """A Qwen3 of groups of 128 with a ternary table, as floats or in MLX's 2 bits; returned with its values."""
    sizes = {**SIZES, "hidden_size": 256, "intermediate_size": 384, "head_dim": 64, "num_attention_heads": 4}
    config = {
        **sizes, "model_type": "qwen3", "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "rope_theta": 1e6, "torch_dtype": "float16",
    }  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens": (258, 256)}
    for layer in range(2):
        shapes |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in (
                ("self_attn.q_proj", (256, 256)), ("self_attn.k_proj", (128, 256)), ("self_attn.v_proj", (128, 256)),
                ("self_attn.o_proj", (256, 256)), ("mlp.gate_proj", (384, 256)), ("mlp.up_proj", (384, 256)),
                ("mlp.down_proj", (256, 384)),
            )
        }  # fmt: skip
    state: dict[str, torch.Tensor] = {}
    values = {}
    for name, (rows, columns) in shapes.items():
        codes = rng.integers(-1, 2, (rows, columns))
        codes[0, :GROUP] = 0
        scales = (0.02 + 0.02 * rng.random((rows, columns // GROUP))).astype(np.float16)
        values[name] = (codes * np.repeat(scales, GROUP, axis=1).astype(np.float32)).astype(np.float32)
        if not mlx:
            state[f"{name}.weight"] = torch.from_numpy(values[name]).half()
            continue
        digits = (codes + 1).astype(np.uint32).reshape(rows, -1, 16)
        words = (digits << np.arange(0, 32, 2, dtype=np.uint32)).sum(axis=2, dtype=np.uint32)
        state[f"{name}.weight"] = torch.from_numpy(words)
        state[f"{name}.scales"], state[f"{name}.biases"] = torch.from_numpy(scales), torch.from_numpy(-scales)
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        for norm, size in (
            ("input_layernorm", 256), ("post_attention_layernorm", 256),
            ("self_attn.q_norm", 64), ("self_attn.k_norm", 64),
        ):  # fmt: skip
            state[f"{prefix}.{norm}.weight"] = torch.ones(size).half()
    state["model.norm.weight"] = torch.ones(256).half()
    directory.mkdir()
    quantization = {"quantization": {"group_size": GROUP, "bits": 2}} if mlx else {}
    (directory / "config.json").write_text(json.dumps({**config, **quantization}))
    save_file(state, directory / "model.safetensors", metadata={"format": "mlx" if mlx else "pt"})
    return values, tokenizer_toys.write(directory)


@pytest.mark.parametrize("mlx", [False, True])
def test_groups_of_128_and_a_ternary_table_are_exact(tmp_path: Path, mlx: bool) -> None:
    """Ternary-Bonsai's form: every value of every matrix, and of the table in our 4 bits, equal."""
    values, directory = bonsai(tmp_path / "src", mlx)
    found = hf_parts(directory)
    assert (found.info.granularity, found.info.group_size, found.info.embedding) == ("group", GROUP, "q4")
    for part in found.parts:
        if isinstance(part, TernaryPart):
            codes, scales = part.codes_and_scales()
            np.testing.assert_array_equal(codes * np.repeat(scales, GROUP, axis=1), values[part.name])
    (table,) = (part for part in found.parts if isinstance(part, TablePart))
    np.testing.assert_array_equal(table.read(), values[table.name])
    np.testing.assert_array_equal(stored_tables(found)[table.name].values(), values[table.name])


def test_greedy_tokens_of_transformers_and_the_engine_are_the_same(tmp_path: Path) -> None:
    """Our export of a checkpoint: 32 tokens of transformers' own generate against the engine's."""
    _, parts = hf.checkpoint(tmp_path / "src", "llama", subln="ones")
    loaded = AutoModelForCausalLM.from_pretrained(hf.written(tmp_path / "out", parts)).eval()
    prompt = list(range(3, 23))
    text = loaded.generate(
        torch.tensor([prompt]), max_new_tokens=32, min_new_tokens=32, do_sample=False, pad_token_id=0
    )
    engine = hf.engine_of(hf_parts(tmp_path / "out"), tmp_path / "packed")
    made = engine.generate(prompt, SamplingParams(32, 0.0, stop_tokens=(), ignore_eos=True)).run().tokens
    assert [*prompt, *made] == text[0].tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_packing_is_transformers_own(quarter: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-1, 2, (4 * quarter, columns)).astype(np.int8)
    packed = pack_rows(codes)
    np.testing.assert_array_equal(packed, pack_weights(torch.from_numpy(codes.copy()).float()).numpy())
    with torch.compiler.set_stance("force_eager"):
        theirs = unpack_weights(torch.from_numpy(packed), torch.float32)
    np.testing.assert_array_equal(unpack_rows(packed), theirs.numpy())
    np.testing.assert_array_equal(unpack_rows(packed), codes)


def test_golden_bytes() -> None:
    """Row i O/4 + j in bits 2 i of row j, as value + 1; pattern 3 is refused."""
    codes = np.array([[-1, 0], [1, 1], [0, -1], [1, 0], [-1, 1], [0, 0], [1, -1], [-1, -1]], np.int8)
    assert pack_rows(codes).tolist() == [[0b10_00_01_00, 0b00_10_00_01], [0b00_01_10_10, 0b00_01_01_10]]
    with pytest.raises(FormatError, match="bit pattern 3"):
        unpack_rows(np.array([[0b00_11_00_00]], np.uint8))


@settings(max_examples=200, deadline=None)
@given(st.floats(2.0**-20, 2.0**20, width=32))
def test_a_divisor_gives_the_step_back_to_a_last_bit(step: float) -> None:
    given_step = np.array([step], np.float32)
    assert step_of(stored_scale(given_step, False), False)[0] == given_step[0]
    back = step_of(stored_scale(given_step, True), True)[0]
    assert abs(back - given_step[0]) <= np.spacing(given_step[0])


NAME = "model.layers.1.mlp.down_proj.weight"
TENSOR_DAMAGE: dict[str, tuple[str, Any, str]] = {
    "missing weight": (NAME, None, "is missing"),
    "missing scale": (f"{NAME}_scale", None, "is missing, its matrix is packed"),
    "code 3": (NAME, torch.full((16, 160), 255, dtype=torch.uint8), "bit pattern 3"),
    "shape": (NAME, torch.zeros(16, 161, dtype=torch.uint8), r"found U8 \[16, 161\]"),
    "type": (NAME, torch.zeros(64, 160, dtype=torch.int8), "found I8"),
    "values beside a scale": (NAME, torch.full((64, 160), 0.5), "holds other values than"),
    "scale 0": (f"{NAME}_scale", torch.zeros(1), "other than 0"),
    "scale NaN": (f"{NAME}_scale", torch.tensor([float("nan")]), "no finite number"),
    "scale infinite": (f"{NAME}_scale", torch.tensor([float("inf")]), "no finite number"),
    "scale too small to divide by": (f"{NAME}_scale", torch.tensor([1e-45]), "other than 0"),
    "scale shape": (f"{NAME}_scale", torch.ones(2, 2), "one number is needed"),
    "scale type": (f"{NAME}_scale", torch.ones(1, dtype=torch.int32), "found I32"),
    "norm NaN": ("model.norm.weight", torch.full((64,), float("nan")), "no finite number"),
    "norm shape": ("model.norm.weight", torch.ones(65), "found shape"),
    "table shape": ("model.embed_tokens.weight", torch.ones(3, 64), "found shape"),
    "unknown tensor": ("model.layers.0.mlp.router.weight", torch.ones(1), "gives no place"),
    "a norm in a layer": ("model.layers.0.mlp.up_proj.rms_norm.weight", torch.ones(64), "gives no place"),
}


def _read_everything(model: ModelParts) -> None:
    for part in model.parts:
        if isinstance(part, TernaryPart):
            part.codes_and_scales()
        elif isinstance(part, TablePart):
            part.read()


@pytest.mark.parametrize("case", TENSOR_DAMAGE)
def test_damaged_tensors_are_one_format_error(tmp_path: Path, case: str) -> None:
    name, tensor, message = TENSOR_DAMAGE[case]
    directory = published(tmp_path / "src", FALCON)
    state = load_file(directory / "model.safetensors")
    state.pop(name, None)
    if tensor is not None:
        state[name] = tensor
    save_file(state, directory / "model.safetensors")
    with pytest.raises(FormatError, match=message):
        _read_everything(hf_parts(directory))


CONFIG_DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "other method": ({"quantization_config": {"quant_method": "gptq"}}, "only bitnet is ternary"),
    "no object": ({"quantization_config": [1]}, "an object is needed"),
    "class": ({"quantization_config": {**FALCON, "linear_class": "x"}}, "linear_class: found 'x'"),
    "mode": ({"quantization_config": {**FALCON, "quantization_mode": 3}}, "quantization_mode: found 3"),
    "norm in layers": ({"quantization_config": {**FALCON, "use_rms_norm": True}}, "use_rms_norm"),
    "kept": ({"quantization_config": {**FALCON, "modules_to_not_convert": [1]}}, "modules_to_not_convert"),
    "none at all": ({"quantization_config": None}, "quantization_config is missing"),
    "untied without a head": ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
    "huge size": ({"hidden_size": 10**18}, "hidden_size"),
    "huge layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "architecture": ({"model_type": "mixtral"}, "model_type"),
    "origin": ({"wrinklefree_origin": {"origin_version": 99}}, "origin_version"),
    "ours": ({"wrinklefree": {"format": "packed"}}, "is a model of wrinklefree"),
}


@pytest.mark.parametrize("case", CONFIG_DAMAGE)
def test_settings_that_cannot_be_are_one_format_error(tmp_path: Path, case: str) -> None:
    changes, message = CONFIG_DAMAGE[case]
    directory = published(tmp_path / "src", FALCON)
    change_config(directory, **changes)
    with pytest.raises(FormatError, match=message):
        hf_parts(directory)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"hidden_size": 1' + "0" * 5000 + "}", '{"a": 1e999}', "{]", "[1]"])
def test_json_that_cannot_be_is_one_format_error(tmp_path: Path, text: str) -> None:
    for name in ("config.json", "model.safetensors.index.json"):
        directory = published(tmp_path / name[:5], FALCON)
        if name != "config.json":
            (directory / "model.safetensors").unlink()
        (directory / name).write_text(text)
        with pytest.raises(FormatError, match=name):
            hf_parts(directory)


def test_what_packed_layers_cannot_be_is_said_before_anything_is_written(tmp_path: Path) -> None:
    _, parts = hf.checkpoint(tmp_path / "src", "llama", hidden_size=72, head_dim=18, intermediate_size=150)
    (tmp_path / "out").mkdir()
    with pytest.raises(Exception, match=r"gate_proj: has 150 rows.*four to a byte; hf-plain"):
        write_hf(tmp_path / "out", parts)
    assert not list((tmp_path / "out").iterdir())


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    directory = published(tmp_path / "src", FALCON)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(FormatError, match="a pickle, which is never opened"):
        hf_parts(directory)
