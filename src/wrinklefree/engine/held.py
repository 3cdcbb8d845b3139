"""Files of other programs run directly: their parts become a packed model in memory, which the extension takes over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.manifest import model_format, read_config
from wrinklefree.artifact.packed_memory import hold_packed
from wrinklefree.artifact.packed_writer import config_bytes
from wrinklefree.artifact.parts import ModelParts
from wrinklefree.engine.native import load_native
from wrinklefree.errors import FormatError, InputError


def is_packed(path: Path) -> bool:
    """Return whether a path is to be read as a packed directory: one that says so, or whose config.json is damaged."""
    if not path.is_dir():
        return False
    try:
        return model_format(read_config(path)) == "packed"
    except FormatError:
        return True  # the loader of packed directories says what is wrong with it


def runs(path: str | Path) -> bool:
    """Return whether a path is for the engine: a packed directory, or a ternary file of another program.

    Everything else (a checkpoint, a Hugging Face model, a GGUF file of other layers) is for torch; a damaged file too,
    whose reader there says what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        return is_packed(path)
    from wrinklefree.artifact.sources import read_parts  # readers that a packed model does not need

    try:
        read_parts(path)
    except InputError:
        return False
    return True


class _NativePacker:
    """The extension's packing with so many threads."""

    def __init__(self, threads: int) -> None:
        self._native = load_native()
        self._threads = threads

    def repack(
        self,
        type_name: str,
        data: NDArray[np.uint8],
        out: NDArray[np.uint8],
        shape: tuple[int, int],
        order: NDArray[np.int32] | None,
        place: str,
    ) -> None:
        self._native.repack(type_name, data, out, *shape, order, place, self._threads)

    def pack_q8(
        self, values: NDArray[np.float32], codes: NDArray[np.uint8], scales: NDArray[np.float32], place: str
    ) -> None:
        self._native.pack_q8(values, codes, scales, place, self._threads)


def load_parts(model: ModelParts, layout: str, options: Mapping[str, int | str]) -> Any:
    """Return the native model of parts. Raises: FormatError, InputError."""
    return load_native().Model.from_tensors(
        config_bytes(model).decode(),
        hold_packed(model, _NativePacker(int(options["threads"]))),
        generation_json=model.files.get("generation_config.json", b"").decode(errors="replace"),
        place=model.place,
        layout=layout,
        **options,
    )


def files_of(model: ModelParts) -> Mapping[str, bytes]:
    """Return what a packed directory of these parts would hold beside its tensors."""
    return {**model.files, "config.json": config_bytes(model)}
