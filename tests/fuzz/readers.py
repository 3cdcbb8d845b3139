"""What is fuzzed: for each reader, small good files to start from, and the call that reads a directory of them."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
for room in ("artifact", "engine"):
    sys.path.insert(0, str(TESTS / room))

import gguf_tokenizer_toys  # noqa: E402
import packed_toys  # noqa: E402
import tokenizer_toys  # noqa: E402
import toy_models  # noqa: E402

from wrinklefree import _native  # noqa: E402
from wrinklefree.artifact.chat_template import ChatTemplate  # noqa: E402
from wrinklefree.artifact.files import read_json  # noqa: E402
from wrinklefree.artifact.gguf.container import GgufFile, GgufWriter, read_gguf  # noqa: E402
from wrinklefree.artifact.gguf.tokenizer import tokenizer_from_gguf, tokenizer_to_gguf  # noqa: E402
from wrinklefree.artifact.gguf.types import gguf_type  # noqa: E402
from wrinklefree.artifact.inspection.model import inspect_model  # noqa: E402
from wrinklefree.artifact.manifest import changed_files, read_packed  # noqa: E402
from wrinklefree.artifact.packed_reader import packed_parts  # noqa: E402
from wrinklefree.artifact.parts import ModelParts, TernaryPart  # noqa: E402
from wrinklefree.artifact.safetensors_file import SafetensorsFile, write_safetensors  # noqa: E402
from wrinklefree.artifact.sources import read_parts  # noqa: E402
from wrinklefree.artifact.tokenizer import Tokenizer  # noqa: E402
from wrinklefree.engine import Engine  # noqa: E402
from wrinklefree.export.gguf import GgufOptions, write_gguf  # noqa: E402
from wrinklefree.export.hf_bitnet import write_hf  # noqa: E402
from wrinklefree.export.hf_plain import write_plain  # noqa: E402
from wrinklefree.export.sgl_bin import write_sgl_bin  # noqa: E402

Files = Mapping[str, bytes]
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
PACKED_TOYS = ("llama_tensor", "llama_group_64", "qwen3", "bitnet", "q6_head", "untied_q4_head", "low_rank", "gemma3")
MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "a\nb"}]


@dataclass(frozen=True)
class Reader:
    """A target. ``seeds`` writes good directories below one; ``read`` reads such a directory; ``files`` are damaged."""

    seeds: Callable[[Path], None]
    read: Callable[[Path], object]
    files: tuple[str, ...] = ()  # all of them when empty


def _tensors(directory: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"t.{dtype}": rng.integers(0, 2, (3, 4)).astype(dtype) for dtype in ("f4", "f2", "u1", "i8", "f8")}
    (directory / "a").mkdir()
    write_safetensors(
        directory / "a" / "model.safetensors", {**arrays, "empty": np.zeros((0, 5), np.int32)}, {"k": "v"}
    )


def _read_tensors(directory: Path) -> None:
    file = SafetensorsFile(directory / "model.safetensors")
    for name, info in file.tensors.items():
        assert file.array(name).nbytes == info.num_bytes


def _packed(directory: Path) -> None:
    for name in (
        "llama_tensor",
        "llama_group_64",
        "qwen3",
        "bitnet",
        "q6_head",
        "untied_q4_head",
        "low_rank",
        "gemma3",
    ):
        changes, granularity, group_size, options = toy_models.TOYS[name]
        config = {**toy_models.BASE, **changes, **SMALL, "num_key_value_heads": 1, "max_position_embeddings": 64}
        if "layer_types" in config:
            config["layer_types"], config["num_hidden_layers"] = config["layer_types"][:2], 2
        if options.get("low_rank"):
            options = {**options, "low_rank": 3}
        toy_models.write_toy(directory / name, config, granularity, group_size, 0, **options)


def _read_parts(parts: ModelParts) -> None:
    for part in parts.parts:
        if isinstance(part, TernaryPart):
            part.codes_and_scales()
        elif hasattr(part, "read"):
            part.read()


def _read_packed(directory: Path) -> None:
    _read_parts(packed_parts(directory))
    inspect_model(directory)


def _read_config(directory: Path) -> None:
    _, info = read_packed(directory)
    changed_files(directory, info)
    read_json(directory / "config.json")


def _configs(directory: Path) -> None:
    _packed(directory)
    packed_toys.write(directory / "with_files")
    for path in directory.rglob("*"):
        if path.is_file() and path.name != "config.json":
            path.unlink()


def _tokenizers(directory: Path) -> None:
    tokenizer_toys.write(directory / "file")
    tokenizer_toys.write(
        directory / "inside", template_file=False, post_processor_bos=True, template=tokenizer_toys.CHATML
    )
    for made in directory.iterdir():
        (made / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
        (made / "special_tokens_map.json").write_text('{"pad_token": {"content": "</s>"}, "unk_token": "<s>"}')


def _read_tokenizer(directory: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    tokenizer.decode(tokenizer.encode("a b")[:20])
    if tokenizer.chat_template is not None:
        tokenizer.encode(tokenizer.apply_chat(MESSAGES)[:1000])  # what comes out is bounded, but may be long


def _templates(directory: Path) -> None:
    loops = (
        "{% set ns = namespace(s='a') %}{% for m in messages if m.role != 'x' %}{% for c in m.content %}{{ c }}"
        "{% endfor %}{% set ns.s = ns.s ~ m.role %}{% if loop.last %}{{ ns.s | trim | upper }}{% endif %}{% endfor %}"
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages | length) }}{{ messages | tojson }}"
    )
    for name, text in (("bos", tokenizer_toys.WITH_BOS), ("chatml", tokenizer_toys.CHATML), ("loops", loops)):
        (directory / name).mkdir()
        (directory / name / "chat_template.jinja").write_text(text)


def _read_template(directory: Path) -> None:
    try:
        source = (directory / "chat_template.jinja").read_bytes().decode("utf-8", errors="replace")
    except UnicodeDecodeError:
        return
    template = ChatTemplate(source)
    template.render(
        MESSAGES, add_generation_prompt=True, tools=None, variables={"bos_token": "<s>", "eos_token": "</s>"}
    )


def _ggufs(directory: Path) -> None:
    (directory / "keys").mkdir()
    metadata = {
        "general.architecture": "llama", "general.alignment": 32, "llama.block_count": np.uint32(2),
        "a.float": np.float32(0.5), "a.double": np.float64(0.5), "a.flag": True, "a.texts": ["a", "b", "\u00e9" * 20],
        "a.numbers": np.arange(9, dtype=np.int32), "a.bytes": np.arange(5, dtype=np.uint8), "a.big": np.uint64(1 << 60),
        "a.flags": np.array([True, False]), "wrinklefree.origin": '{"origin_version": 1}',
    }  # fmt: skip
    tensors = [("token_embd.weight", gguf_type("F32"), (4, 8)), ("blk.0.x", gguf_type("TQ2_0"), (2, 256)),
               ("out", gguf_type("Q8_0"), (3, 64)), ("v", gguf_type("F16"), (5,))]  # fmt: skip
    with GgufWriter(directory / "keys" / "model.gguf", metadata, tensors) as writer:
        for name, _, _ in tensors:
            writer.write(name, np.zeros(writer.tensors[name].num_bytes, np.uint8))


def _read_gguf(directory: Path) -> None:
    file = read_gguf(directory / "model.gguf")
    for key in file.metadata:
        assert file.metadata[key] is not None
    for name, tensor in file.tensors.items():
        assert file.data(name).size == tensor.num_bytes


def _gguf_tokenizers(directory: Path) -> None:
    for name in ("gpt-2", "llama-bpe"):
        (directory / name).mkdir()
        files = gguf_tokenizer_toys.files(gguf_tokenizer_toys.byte_level(name))
        gguf_tokenizer_toys.written(directory / name / "model.gguf", files)


def _read_gguf_tokenizer(directory: Path) -> None:
    file: GgufFile = read_gguf(directory / "model.gguf")
    Tokenizer.from_files(tokenizer_from_gguf(file), str(file.path)).encode("a b")


def _small_parts(directory: Path, **changes: Any) -> ModelParts:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {**packed_toys.CONFIG, **sizes, "num_key_value_heads": 1}
    info = replace(packed_toys.INFO, **{"granularity": "tensor", "subln": "none", **changes})
    return packed_parts(packed_toys.write(directory, config, info))


def _tokenizer_files(directory: Path) -> None:
    for name in ("gpt-2", "llama-bpe", "qwen2"):
        (directory / name).mkdir()
        for file, data in gguf_tokenizer_toys.files(gguf_tokenizer_toys.byte_level(name), bos=name != "qwen2").items():
            (directory / name / file).write_bytes(data)


def _read_tokenizer_files(directory: Path) -> None:
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    tokenizer_to_gguf(files, {"vocab_size": 600})


def _gguf_models(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as root:
        for index, ternary in enumerate(("TQ2_0", "I2_S")):
            parts = _small_parts(Path(root) / ternary, subln="identity" if index else "none")
            (directory / ternary).mkdir()
            write_gguf(directory / ternary / "model.gguf", parts, GgufOptions(ternary=ternary))


def _hf_models(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as root:
        for index, write in enumerate((write_hf, write_plain)):
            (directory / str(index)).mkdir()
            write(directory / str(index), _small_parts(Path(root) / str(index)))
    whole = SafetensorsFile(directory / "1" / "model.safetensors")
    shutil.copytree(directory / "1", directory / "shards", ignore=shutil.ignore_patterns("*.safetensors"))
    shards = {f"model-{i}-of-2.safetensors": sorted(whole.tensors)[i - 1 :: 2] for i in (1, 2)}
    for file, names in shards.items():
        write_safetensors(directory / "shards" / file, {name: whole.array(name) for name in names})
    index_json = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (directory / "shards" / "model.safetensors.index.json").write_text(json.dumps(index_json))


def _bins(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as root:
        for index in range(2):
            parts = _small_parts(Path(root) / str(index), subln="identity" if index else "none")
            (directory / str(index)).mkdir()
            write_sgl_bin(directory / str(index) / "model.bin", parts)


def _model_path(directory: Path) -> Path:
    return next((path for path in sorted(directory.iterdir()) if path.suffix in (".gguf", ".bin")), directory)


def _read_model(directory: Path) -> None:
    path = _model_path(directory)
    _read_parts(read_parts(path))
    if path.suffix != ".bin":
        inspect_model(path)


def _foreign_models(directory: Path) -> None:
    for name, write in (("gguf", _gguf_models), ("bin", _bins), ("hf", _hf_models)):
        made = directory / name
        made.mkdir()
        write(made)
        for inner in list(made.iterdir()):
            tokenizer_toys.write(inner)
            inner.rename(directory / f"{name}-{inner.name}")
        made.rmdir()


def _run_model(directory: Path) -> None:
    engine = Engine.load(_model_path(directory), threads=1)
    logits = engine.logits([0, 1, 2])
    assert logits.shape == (3, engine.vocab_size)


LOADER_TOYS = ("llama_tensor", "llama_group_64", "qwen3", "bitnet", "linear_rope_f16_head", "bias_everywhere")
LOADER_TOYS += ("q6_head", "untied_q4_head", "dense_row", "dense_group_128", "low_rank", "gemma3")
LAYOUTS = ("stored", "stored", "t2", "t1.6")  # in memory


def _loader_toys(directory: Path) -> None:
    for index, name in enumerate(LOADER_TOYS):
        made = toy_models.make_toy(directory / name, name)
        if index % 2 == 0:
            config = json.loads((made / "config.json").read_text())
            config["wrinklefree"]["dlm"] = {
                "mask_token_id": 5,
                "block_size": 4,
                "token_shift": True,
                "variant": "fast_dllm",
                "clean_half": "causal",
            }
            (made / "config.json").write_text(json.dumps({**config, "pad_token_id": 6, "eos_token_id": [1, 2]}))


def _load(directory: Path) -> None:
    """Load a directory and compute a few tokens: logits come out, or are said to be no numbers."""
    choice = zlib.crc32(b"".join(path.read_bytes() for path in sorted(directory.iterdir())))
    layout, keep_mapped = LAYOUTS[choice % 4], bool(choice & 4)
    model = _native.Model.load(str(directory), threads=1, layout=layout, keep_mapped=keep_mapped)
    logits = np.empty(model.vocab_size, np.float32)
    tokens = np.arange(min(3, model.context, model.vocab_size), dtype=np.int32)
    model.forward(0, tokens, logits)
    token = _native.Sampler(model.vocab_size, temperature=1.0).sample(logits)[0]
    assert 0 <= token < model.vocab_size and token not in model.banned_tokens
    choices = tuple(np.empty(len(tokens), dtype) for dtype in (np.int32, np.float32, np.float32))
    model.forward_batch([0], [tokens], [2], None, starts=[0], blocks=[4], choices=choices)
    assert model.length(0) == len(tokens)
    assert all(-1 <= token < model.vocab_size and token not in model.banned_tokens for token in choices[0])


READERS: dict[str, Reader] = {
    "safetensors": Reader(_tensors, _read_tensors),
    "config": Reader(_configs, _read_config),
    "gguf": Reader(_ggufs, _read_gguf),
    "packed": Reader(_packed, _read_packed),
    "tokenizer": Reader(_tokenizers, _read_tokenizer),
    "template": Reader(_templates, _read_template),
    "gguf-tokenizer": Reader(_gguf_tokenizers, _read_gguf_tokenizer),
    "tokenizer-to-gguf": Reader(_tokenizer_files, _read_tokenizer_files),
    "gguf-model": Reader(_gguf_models, _read_model),
    "hf": Reader(_hf_models, _read_model),
    "bin": Reader(_bins, _read_model),
    "engine": Reader(_foreign_models, _run_model),
    "loader": Reader(_loader_toys, _load),
}
