"""Write GGUF files with random ternary weights for the peers: ``python -m benchmarks.peers.make_gguf --help``.

For each shape a source file is written (blocks Q8_0 with values {-s, 0, s}, embedding float16), from which each
engine's own llama-quantize makes the types it is fastest with; the source is then deleted. Speed does not depend on
the values: they are random, and the tokenizer is a dummy of the right size.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from benchmarks.peers.shapes import PEER_SHAPES, STAND_IN
from numpy.typing import NDArray

BLOCK = 32  # weights of a Q8_0 block: a float16 scale and as many bytes
BYTE_TOKENS = 256
DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class Recipe:
    """A file to make: whose llama-quantize makes it, the type of the blocks, and the type of embedding and head."""

    engine: str
    type: str
    head: str
    shapes: tuple[str, ...]

    def file_name(self, shape: str) -> str:
        return f"{shape}.{self.engine}.{self.type}.head-{self.head}.gguf"

    def command(self, program: Path, source: Path, target: Path) -> list[str]:
        """Return the call of llama-quantize. One thread: bitnet.cpp would write a wrong scale with more."""
        embedding = ["--token-embedding-type", self.head, "--output-tensor-type", self.head]
        return [str(program), "--allow-requantize", *embedding, str(source), str(target), self.type, "1"]


_LARGE, _SMALL = ("bitnet-2b",), ("smollm2-135m",)

RECIPES = (
    *(Recipe("ik", name, "q6_K", _LARGE) for name in ("IQ2_BN", "IQ2_BN_R4", "IQ1_BN")),
    *(Recipe("ik", name, "q8_0", _SMALL) for name in ("IQ2_BN", "IQ2_BN_R4", "IQ1_BN")),
    Recipe("bitnet", "I2_S", "q6_K", _LARGE),
    Recipe("bitnet", "I2_S", "f16", _LARGE),
    Recipe("bitnet", "I2_S", "q8_0", (STAND_IN,)),
    *(Recipe("llama", name, "q6_K", _LARGE) for name in ("TQ2_0", "TQ1_0", "Q4_0")),
    Recipe("llama", "TQ2_0", "q8_0", (*_SMALL, STAND_IN)),  # 576 columns: llama-quantize falls back to Q4_0
    Recipe("llama", "Q4_0", "q8_0", _SMALL),
)


def _linears(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the (rows, columns) of the linear layers of a block, by their names in GGUF files."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    return {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }


def _ternary_q8_0(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Return ternary weights of one scale as Q8_0 blocks, uint8 [rows, bytes of a row]."""
    blocks = np.empty((rows, columns // BLOCK), np.dtype([("scale", np.float16), ("values", np.int8, BLOCK)]))
    blocks["scale"] = columns**-0.5 / 127
    blocks["values"] = 127 * random.integers(-1, 2, (*blocks.shape, BLOCK), np.int8)
    return blocks.view(np.uint8).reshape(rows, -1)


def _tensors(config: Mapping[str, Any], seed: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the names and data of all tensors; uint8 stands for Q8_0."""
    random = np.random.default_rng(seed)
    hidden = config["hidden_size"]
    ones = np.ones(hidden, np.float32)
    embedding = random.standard_normal((config["vocab_size"], hidden), np.float32)
    yield "token_embd.weight", (embedding * np.float32(hidden**-0.5)).astype(np.float16)
    yield "output_norm.weight", ones
    for layer in range(config["num_hidden_layers"]):
        yield f"blk.{layer}.attn_norm.weight", ones
        yield f"blk.{layer}.ffn_norm.weight", ones
        for name, (rows, columns) in _linears(config).items():
            yield f"blk.{layer}.{name}.weight", _ternary_q8_0(random, rows, columns)


def _add_metadata(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """Add the keys of a Llama and a tokenizer of byte tokens and unused words."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(DEFAULT_CONTEXT)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    special = ["<unk>", "<s>", "</s>"]
    words = config["vocab_size"] - len(special) - BYTE_TOKENS
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * BYTE_TOKENS + [gguf.TokenType.NORMAL] * words
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *(f"<0x{b:02X}>" for b in range(BYTE_TOKENS)), *(f"w{i}" for i in range(words))])
    writer.add_token_scores([-float(index) for index in range(config["vocab_size"])])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write_source(path: Path, shape: str, seed: int = 0) -> None:
    """Write the file from which the others are quantised; weights are drawn twice rather than all held in memory."""
    config = PEER_SHAPES[shape]
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer, config)
    for name, data in _tensors(config, seed):
        kind = gguf.GGMLQuantizationType.Q8_0 if data.dtype == np.uint8 else None
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, data in _tensors(config, seed):
        writer.write_tensor_data(data)
    writer.close()


def make_files(out: Path, shape: str, programs: Mapping[str, Path], only: frozenset[str], keep: bool) -> None:
    """Make the files of one shape that are missing in ``out``. Raises: CalledProcessError when llama-quantize fails."""
    wanted = [r for r in RECIPES if shape in r.shapes and r.engine in programs and (not only or r.type in only)]
    missing = [recipe for recipe in wanted if not (out / recipe.file_name(shape)).exists()]
    if not missing:
        return
    source = out / f"{shape}.source.gguf"
    if not source.exists():
        write_source(source, shape)
    for recipe in missing:
        target = out / recipe.file_name(shape)
        part = target.with_suffix(".part")
        command = recipe.command(programs[recipe.engine], source, part)
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part.rename(target)
        print(f"{target}: {target.stat().st_size / 1e6:.0f} MB", flush=True)
    if not keep:
        source.unlink()


def main() -> None:
    """Read the command line and make the files."""
    parser = argparse.ArgumentParser(description="Write GGUF files with random ternary weights for the peers.")
    parser.add_argument("--out", type=Path, required=True, help="directory for the files")
    parser.add_argument("--shape", action="append", choices=list(PEER_SHAPES), help="default: all")
    parser.add_argument("--type", action="append", default=[], help="only these types, such as I2_S; default: all")
    parser.add_argument("--keep-source", action="store_true", help="do not delete the unquantised file")
    for engine in ("ik", "bitnet", "llama"):
        parser.add_argument(f"--{engine}", type=Path, help=f"the llama-quantize of {engine}'s build; leave out to skip")
    options = parser.parse_args()
    programs = {name: getattr(options, name) for name in ("ik", "bitnet", "llama") if getattr(options, name)}
    options.out.mkdir(parents=True, exist_ok=True)
    for shape in options.shape or PEER_SHAPES:
        make_files(options.out, shape, programs, frozenset(options.type), options.keep_source)


if __name__ == "__main__":
    main()
