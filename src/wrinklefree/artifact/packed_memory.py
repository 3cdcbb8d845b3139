"""A packed model in memory instead of a directory: the same tensors with the same bytes, made for the engine.

Everything lies in one piece of memory, each tensor at a multiple of 64 bytes. Layers and tables are made one after the
other, tables some rows at a time, so that what is needed on the way stays small beside the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.packed_writer import beside_codes, norm_arrays, tensors_of
from wrinklefree.artifact.packing import LAYOUT, ROWS_PER_BLOCK, pack_codes
from wrinklefree.artifact.parts import ModelParts, NormPart, StoredCodes, TablePart, TernaryPart
from wrinklefree.artifact.safetensors_file import ALIGNMENT, DTYPES, TensorInfo
from wrinklefree.artifact.tables import QuantizedTable, TableFormat, pack_table, quantize_table
from wrinklefree.errors import FormatError


class Packer(Protocol):
    """What packs faster than NumPy, to the same bytes."""

    def repack(
        self,
        type_name: str,
        data: NDArray[np.uint8],
        out: NDArray[np.uint8],
        shape: tuple[int, int],
        order: NDArray[np.int32] | None,
        place: str,
    ) -> None:
        """Write codes ``[R, C, 256]`` of the rows of a `CodeRows` type, or of int8 ones (I8)."""

    def pack_q8(
        self, values: NDArray[np.float32], codes: NDArray[np.uint8], scales: NDArray[np.float32], place: str
    ) -> None:
        """Write the codes ``[R, C, 1024]`` and scales ``[V]`` of a table."""


# Formats whose rows do not depend on each other.
_BY_ROWS: tuple[TableFormat, ...] = ("q8", "f16")
_TABLE_ROWS = 256 * ROWS_PER_BLOCK


def hold_packed(model: ModelParts, packer: Packer | None = None) -> dict[str, NDArray[Any]]:
    """Return the tensors of a packed directory of this model, tables as `stored_tables` gives them.

    Without a ``packer`` NumPy does its work.

    Raises: FormatError and InputError as `write_packed` does.
    """
    held = _memory(tensors_of(model))
    for part in model.parts:
        if isinstance(part, TablePart):
            _hold_table(part, model.info.embedding, held, packer, model.place)
            continue
        if isinstance(part, NormPart):
            arrays = norm_arrays(part)
        else:
            fast = packer if model.info.layout == LAYOUT else None
            scales = _hold_codes(part, held[f"{part.name}.weight"], fast, f"{model.place}: {part.name}")
            arrays = beside_codes(part, scales, model.info)
        for name, array in arrays:
            _put(held, name, array)
    return held


def _memory(tensors: list[TensorInfo]) -> dict[str, NDArray[Any]]:
    """Uninitialised arrays in one piece of memory."""
    room = {tensor.name: -(-tensor.num_bytes // ALIGNMENT) * ALIGNMENT for tensor in tensors}
    whole = np.empty(sum(room.values()) + ALIGNMENT, np.uint8)
    begin, held = -whole.ctypes.data % ALIGNMENT, {}
    for tensor in tensors:
        held[tensor.name] = whole[begin : begin + tensor.num_bytes].view(DTYPES[tensor.dtype]).reshape(tensor.shape)
        begin += room[tensor.name]
    return held


def _put(held: Mapping[str, NDArray[Any]], name: str, array: NDArray[Any]) -> None:
    target = held[name]
    if (array.dtype, array.shape) != (target.dtype, target.shape):
        raise FormatError(
            f"{name}: found {array.dtype} {list(array.shape)}, config.json asks for {target.dtype} {list(target.shape)}"
        )
    target[...] = array


def _hold_codes(part: TernaryPart, out: NDArray[Any], packer: Packer | None, place: str) -> NDArray[np.float32]:
    """Write the codes of a layer and return its scales."""
    stored = part.read.rows if isinstance(part.read, StoredCodes) else None
    if packer is not None and stored is not None:
        part.check_scales(stored.scales)
        packer.repack(stored.type_name, stored.data, out, part.shape, stored.order, place)
        return stored.scales
    ternary, scales = part.codes_and_scales()
    if packer is None:
        _put({part.name: out}, part.name, pack_codes(ternary) if out.ndim == 3 else pack_codes(ternary, "t1.6-r16c64"))
    else:
        flat = np.ascontiguousarray(ternary).reshape(-1).view(np.uint8)
        packer.repack("I8", flat, out, part.shape, None, place)
    return scales


def _hold_table(
    part: TablePart, format: TableFormat, held: Mapping[str, NDArray[Any]], packer: Packer | None, place: str
) -> None:
    """Write a table, in pieces of rows where its source gives such and its format allows it."""
    rows = part.shape[0]
    stored = None if part.quantized is None else part.quantized()
    if stored is not None and stored.format == format:
        _hold_rows(part.name, stored, (0, rows), held)
        return
    by_rows = part.read_rows is not None and format in _BY_ROWS
    step = _TABLE_ROWS if by_rows else rows
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        values = part.read_rows(begin, end) if by_rows and part.read_rows is not None else part.read()
        if packer is not None and format == "q8":
            codes, scales = held[f"{part.name}.weight"], held[f"{part.name}.weight_scale"]
            packer.pack_q8(
                np.ascontiguousarray(values), codes[_blocks(begin, end)], scales[begin:end], f"{place}: {part.name}"
            )
        else:
            _hold_rows(part.name, quantize_table(values, format), (begin, end), held)


def _blocks(begin: int, end: int) -> slice:
    return slice(begin // ROWS_PER_BLOCK, -(-end // ROWS_PER_BLOCK))


def _hold_rows(name: str, table: QuantizedTable, rows: tuple[int, int], held: Mapping[str, NDArray[Any]]) -> None:
    codes, scales = pack_table(table)
    each, blocks = slice(*rows), _blocks(*rows)
    _put({name: held[f"{name}.weight"][each if table.format == "f16" else blocks]}, name, codes)
    if scales is not None:
        _put({name: held[f"{name}.weight_scale"][each if table.format == "q8" else blocks]}, name, scales)
