"""Every tensor of a Hugging Face model directory: ``model.safetensors``, or the shards that its index names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.files import read_json
from wrinklefree.artifact.huggingface.floats import FLOAT_TYPES, FloatType, widen
from wrinklefree.artifact.safetensors_file import SafetensorsFile, TensorInfo
from wrinklefree.errors import FormatError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARDS = 4096
_MAX_INDEX_BYTES = 64 * 1024 * 1024


class ShardedTensors:
    """The checked tensors of a directory, whichever file each stands in; nothing is read until it is asked for."""

    def __init__(self, directory: Path) -> None:
        """Open and check.

        Raises: FormatError when there are no safetensors files, one is damaged, or the index is not what they hold.
        """
        self.directory = directory
        self._files: dict[str, SafetensorsFile] = {}
        if (directory / WEIGHTS).exists() or not (directory / INDEX).exists():
            _refuse_pickles(directory)
            whole = SafetensorsFile(directory / WEIGHTS)
            self._files = dict.fromkeys(whole.tensors, whole)
        else:
            self._open_shards(directory / INDEX)

    def _open_shards(self, index: Path) -> None:
        mapping = read_json(index, _MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise FormatError(f"{index}: weight_map: an object from tensor names to file names is needed")
        for tensor, name in mapping.items():
            if not _is_plain(name):
                raise FormatError(f"{index}: weight_map: {tensor}: found {name!r:.80}, a plain *.safetensors file name")
        names = sorted(set(mapping.values()))
        if len(names) > MAX_SHARDS:
            raise FormatError(f"{index}: found {len(names)} shards, at most {MAX_SHARDS} are allowed")
        for name in names:
            shard = SafetensorsFile(index.parent / name)
            for tensor in shard.tensors:
                if mapping.get(tensor) != name:
                    raise FormatError(f"{index}: {tensor}: stands in {name}, the index says {mapping.get(tensor)!r}")
                self._files[tensor] = shard
        missing = sorted(mapping.keys() - self._files.keys())
        if missing:
            raise FormatError(f"{index}: {missing[0]}: is not in {mapping[missing[0]]}; the download is incomplete?")

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def info(self, name: str) -> TensorInfo | None:
        """Return what the header says of one tensor, None when there is none of that name."""
        return self._files[name].tensors[name] if name in self._files else None

    def place(self, name: str) -> str:
        """Return where a tensor stands, for messages."""
        return f"{self._files[name].path}: {name}"

    def array(self, name: str) -> NDArray[Any]:
        """Return a read-only view of one tensor. Raises: FormatError when there is none of that name."""
        if name not in self._files:
            raise FormatError(f"{self.directory}: the tensor {name} is missing")
        return self._files[name].array(name)

    def float_type(self, name: str) -> FloatType:
        """Return the type of a float tensor. Raises: FormatError when it is no float."""
        info = self.info(name)
        for dtype in FLOAT_TYPES:
            if info is not None and info.dtype == dtype:
                return dtype
        found = "nothing" if info is None else info.dtype
        raise FormatError(f"{self.directory}: {name}: found {found}, one of {', '.join(FLOAT_TYPES)} is needed")

    def floats(self, name: str, shape: tuple[int, ...] | None = None, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Return a float tensor, or some of its rows, as float32.

        Raises: FormatError when it is missing, no float, of another shape than ``shape``, or holds a value that is no
        finite number.
        """
        dtype, stored = self.float_type(name), self.array(name)
        if shape is not None and stored.shape != shape:
            raise FormatError(f"{self.place(name)}: found shape {list(stored.shape)}, {list(shape)} is needed")
        values = widen(stored if rows == slice(None) else stored[rows], dtype)
        if not np.isfinite(values).all():
            raise FormatError(f"{self.place(name)}: holds a value that is no finite number")
        return values


def all_plain(names: Iterable[object]) -> bool:
    """Return whether all are names of safetensors files in the directory itself."""
    return all(_is_plain(name) for name in names)


def _is_plain(name: object) -> bool:
    # A name with a path in it would let an index point the reader anywhere on the machine.
    return isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\\0") and name[0] != "."


def _refuse_pickles(directory: Path) -> None:
    if not (directory / WEIGHTS).exists() and any(directory.glob("pytorch_model*.bin")):
        raise FormatError(
            f"{directory}: holds pytorch_model.bin, a pickle, which is never opened; save the model as safetensors"
        )
