"""Writes the seeds of the C++ fuzz targets: the files of small packed models, one for each feature of the engine.

python native/fuzz/seeds.py OUT        (OUT/config, OUT/header, OUT/directory, ...)
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "engine"))

from toy_models import BASE, TOYS, write_toy

from wrinklefree.artifact.safetensors_file import write_safetensors

DLM = {"mask_token_id": 5, "block_size": 4, "token_shift": True, "variant": "fast_dllm", "clean_half": "causal"}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}


def small_toy(directory: Path, name: str) -> tuple[bytes, bytes]:
    """Return config.json and model.safetensors of a toy of a few kilobytes."""
    changes, granularity, group_size, options = TOYS[name]
    config = {**BASE, **changes, **SMALL, "num_key_value_heads": 1, "max_position_embeddings": 64}
    if "layer_types" in config:
        config["layer_types"], config["num_hidden_layers"] = config["layer_types"][:2], 2
    if options.get("low_rank"):
        options = {**options, "low_rank": 3}
    if options.get("layout"):  # five blocks of 64 columns, so that the dense layout occurs
        config["intermediate_size"] = 330
    write_toy(directory, config, granularity, group_size, 0, **options)
    return (directory / "config.json").read_bytes(), (directory / "model.safetensors").read_bytes()


def as_diffusion(config: bytes) -> bytes:
    """Return a config with the marker of a diffusion model."""
    value = json.loads(config)
    value["wrinklefree"]["dlm"] = DLM
    return json.dumps({**value, "pad_token_id": 6, "eos_token_id": [1, 2]}).encode()


def small_headers(out: Path) -> None:
    """Write safetensors files of a few hundred bytes: what the header says matters, and short inputs are fast."""
    types = ("f4", "f2", "u1", "i8", "f8", "?", "<u2", "i4")
    for count in range(1, len(types)):
        arrays = {f"model.{dtype}.{i}": np.ones((i + 1, 2, 3)[: i + 1], dtype) for i, dtype in enumerate(types[:count])}
        write_safetensors(out / str(count), {**arrays, "none": np.zeros((0, 4), np.float32)}, {"format": "pt"})


def write_seeds(out: Path) -> None:
    """Write every target's seeds below ``out``."""
    for target in ("config", "header", "directory", "tensors", "rows", "calls"):
        (out / target).mkdir(parents=True, exist_ok=True)
    small_headers(out / "header")
    with tempfile.TemporaryDirectory() as root:
        for index, name in enumerate(TOYS):
            config, weights = small_toy(Path(root) / name, name)
            if index % 2:
                config = as_diffusion(config)
            (out / "config" / name).write_bytes(config)
            packed = bytes([index % 64]) + struct.pack("<I", len(config)) + config + weights
            (out / "directory" / name).write_bytes(packed)
            (out / "tensors" / name).write_bytes(packed)
    for index in range(8):
        (out / "calls" / str(index)).write_bytes(bytes((7 * index + 31 * i * i) % 256 for i in range(200)))
        (out / "rows" / str(index)).write_bytes(bytes((5 * index + 17 * i * i) % 256 for i in range(300)))


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
