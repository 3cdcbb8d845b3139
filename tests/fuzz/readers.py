"""What is fuzzed: for each reader, small good files to start from, and the call that reads a directory of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
for room in ("artifact", "engine"):
    sys.path.insert(0, str(TESTS / room))

import gguf_tokenizer_toys  # noqa: E402
import packed_toys  # noqa: E402
import tokenizer_toys  # noqa: E402
import toy_models  # noqa: E402

from wrinklefree.artifact.chat_template import ChatTemplate  # noqa: E402
from wrinklefree.artifact.files import read_json  # noqa: E402
from wrinklefree.artifact.gguf.container import GgufFile, GgufWriter, read_gguf  # noqa: E402
from wrinklefree.artifact.gguf.tokenizer import tokenizer_from_gguf  # noqa: E402
from wrinklefree.artifact.gguf.types import gguf_type  # noqa: E402
from wrinklefree.artifact.inspection import inspect_model  # noqa: E402
from wrinklefree.artifact.manifest import changed_files, read_packed  # noqa: E402
from wrinklefree.artifact.packed_reader import packed_parts  # noqa: E402
from wrinklefree.artifact.parts import ModelParts, TernaryPart  # noqa: E402
from wrinklefree.artifact.safetensors_file import SafetensorsFile, write_safetensors  # noqa: E402
from wrinklefree.artifact.tokenizer import Tokenizer  # noqa: E402

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


READERS: dict[str, Reader] = {
    "safetensors": Reader(_tensors, _read_tensors),
    "config": Reader(_configs, _read_config),
    "gguf": Reader(_ggufs, _read_gguf),
    "packed": Reader(_packed, _read_packed),
    "tokenizer": Reader(_tokenizers, _read_tokenizer),
    "template": Reader(_templates, _read_template),
    "gguf-tokenizer": Reader(_gguf_tokenizers, _read_gguf_tokenizer),
}
