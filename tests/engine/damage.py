"""Ways to damage a packed toy: its header, its tensors, its config."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from wrinklefree import _native

Header = dict[str, Any]
GATE = "model.layers.0.mlp.gate_proj"
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


def load(directory: Path) -> Any:
    return _native.Model.load(str(directory), threads=1)


def split(directory: Path) -> tuple[Header, bytes]:
    data = (directory / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def padded(text: bytes) -> bytes:
    """The header padded as writers do, so that the tensors behind it stay aligned."""
    return text + b" " * (-(8 + len(text)) % 64)


def join(directory: Path, header: Header | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else padded(json.dumps(header).encode())
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_config(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((directory / "config.json").read_text())
    edit(config)
    (directory / "config.json").write_text(json.dumps(config))


def edit_tensors(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change tensors and write a file that is right as a file. The engine wants aligned tensors, so sizes stay even."""
    tensors = dict(load_file(directory / "model.safetensors"))
    edit(tensors)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, directory / "model.safetensors")


def setter(key: str, value: Any, inner: str | None = None) -> Callable[[dict[str, Any]], object]:
    return lambda c: (c[inner] if inner else c).__setitem__(key, value)


def inside(*keys: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Set, or with None remove, an entry behind ``keys``."""

    def edit(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        if value is None:
            config.pop(keys[-1])
        else:
            config[keys[-1]] = value

    return edit
