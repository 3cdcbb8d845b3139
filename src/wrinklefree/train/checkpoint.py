"""The training state on disk: everything a resumed run needs to be the uninterrupted one, bit for bit.

    state/step-00000010/tensors.safetensors   every tensor: weights, optimizer, random generators
                        state.json            the tree around them: schedules' positions, counters, tensor references
                        manifest.json         SHA-256 of both, and the format version

A state is written beside its final name and renamed, so it is whole or absent. No pickle is written or read.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from wrinklefree.artifact.files import json_bytes, new_directory, read_json, sha256, write_bytes
from wrinklefree.errors import FormatError, InputError

FORMAT_VERSION = 1
_TENSORS, _TREE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_PREFIX = "step-"


def save_state(directory: Path, step: int, state: Mapping[str, Any], keep_last: int = 2) -> Path:
    """Write ``state`` (nested dicts, lists, numbers, strings, tensors) and keep the newest ``keep_last``; return where.

    Raises: InputError when there is no space or permission.
    """
    out = directory / f"{_PREFIX}{step:08d}"
    if out.exists():
        shutil.rmtree(out)
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}
    tree = _flatten(dict(state), "", tensors, names)
    with new_directory(out) as partial:
        try:
            save_file(tensors, partial / _TENSORS)
        except SafetensorError as error:
            raise InputError(f"{out}: cannot be written ({error}); nothing was left there") from error
        write_bytes(partial / _TREE, json_bytes(tree))
        hashes = {name: sha256(partial / name) for name in (_TENSORS, _TREE)}
        write_bytes(partial / _MANIFEST, json_bytes({"format_version": FORMAT_VERSION, "sha256": hashes}))
    for old in _states(directory)[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)
    return out


def load_state(path: Path) -> dict[str, Any]:
    """Return the state in one ``step-*`` directory, tensors on the CPU.

    Raises: FormatError when it is damaged or of another format version.
    """
    manifest = read_json(path / _MANIFEST)
    if manifest.get("format_version") != FORMAT_VERSION:
        found = manifest.get("format_version")
        raise FormatError(f"{path}: format_version {found!r}, this release reads {FORMAT_VERSION}")
    hashes = manifest.get("sha256")
    for name in (_TENSORS, _TREE):
        if not (path / name).is_file() or not isinstance(hashes, dict) or hashes.get(name) != sha256(path / name):
            raise FormatError(f"{path}/{name}: is not what the manifest says it was; the state is damaged")
    state = _unflatten(read_json(path / _TREE), load_file(path / _TENSORS))
    assert isinstance(state, dict)
    return state


def load_newest(directory: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the newest state that is whole, or None when there is none; ``say`` hears of each damaged one."""
    for path in reversed(_states(directory)):
        try:
            return load_state(path)
        except FormatError as error:
            say(f"WARNING: {error}; going back to the state before it")
    return None


def random_state() -> dict[str, Any]:
    """Return the state of torch's generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": list(cuda)}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Take back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _states(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.name.startswith(_PREFIX) and path.is_dir())


def _flatten(value: Any, name: str, tensors: dict[str, Tensor], names: dict[tuple[Any, ...], str]) -> Any:
    """Return ``value`` as JSON, tensors moved to ``tensors`` and referred to by name (tied ones once)."""
    if isinstance(value, Tensor):
        key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, value.device)
        if value.numel() == 0 or key not in names:
            names[key] = name
            tensors[name] = value.detach().contiguous().cpu()
        return {"tensor": names[key]}
    if isinstance(value, Mapping):
        # Pairs, because an optimizer's state has integer keys, which JSON objects lose.
        return {"dict": [[k, _flatten(v, f"{name}.{k}".strip("."), tensors, names)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flatten(v, f"{name}.{i}".strip("."), tensors, names) for i, v in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return {"is": value}
    raise TypeError(f"training state {name}: {type(value).__name__} cannot be stored")


def _unflatten(node: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {k: _unflatten(v, tensors) for k, v in value}
    if kind == "list":
        return [_unflatten(v, tensors) for v in value]
    if kind == "tuple":
        return tuple(_unflatten(v, tensors) for v in value)
    if kind == "float":
        return float(value)
    return value
