"""Figures as files, one each: what was found, of which model and text, how, and whether it is still that.

A figure is made once. It is made again only when its key has changed: the model's weights, the text or the settings.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wrinklefree.artifact.files import json_bytes, write_bytes
from wrinklefree.artifact.provenance import provenance

_HASHED = ("*.safetensors", "*.gguf", "config.json", "tokenizer.json")
_READ_BYTES = 1 << 20


class FigureStore:
    """The directory of figures. ``say`` hears of every figure that is made."""

    def __init__(self, directory: Path, say: Callable[[str], None] = lambda text: None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.say = directory, say

    def get(self, name: str, key: Mapping[str, Any]) -> Any:
        """Return a figure that was made under this very key, None where there is none."""
        found = read(self.directory / f"{name}.json")
        return found["value"] if found and found["key"] == json.loads(json_bytes(dict(key))) else None

    def once(self, name: str, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """Return a figure, made now unless it is there; ``key`` and what ``make`` returns are plain values."""
        found = self.get(name, key)
        if found is not None:
            return found
        self.say(name)
        started = time.monotonic()
        return self.put(name, key, make(), time.monotonic() - started)

    def put(self, name: str, key: Mapping[str, Any], value: Any, seconds: float) -> Any:
        """Write a figure; return it as it will be read."""
        content = {"key": dict(key), "seconds": round(seconds, 1), "provenance": provenance(), "value": value}
        write_bytes(self.directory / f"{name}.json", json_bytes(content))
        return json.loads(json_bytes(value))


def read(path: Path) -> dict[str, Any] | None:
    """Return the content of a figure's file, None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def model_hash(path: Path) -> str:
    """Return the SHA-256 of a model's weights, configuration and tokenizer: a GGUF file or a directory."""
    if path.is_file():
        files = [path]
    else:
        files = sorted({file for pattern in _HASHED for file in path.glob(pattern)})
    if not files:
        raise SystemExit(f"{path}: found no model there")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() if path.is_dir() else b"")
        with file.open("rb") as opened:
            while block := opened.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()
