"""A ternary model as its parts: what every reader of a format gives and every writer of one takes.

A reader (a converted torch model, a packed directory, a GGUF file, a directory of Hugging Face's BitNet) says what
the model consists of; a writer decides how each kind of part becomes bytes. A ternary layer comes as codes and scales
and in no other form, so a writer cannot ternarise once more: rounding latents by another rule is what turned exported
files into garbage elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.manifest import PackedInfo
from wrinklefree.artifact.tables import QuantizedTable, quantize_table
from wrinklefree.errors import FormatError


@dataclass(frozen=True)
class Stored:
    """How a part stood in its source: name of the type, and bytes."""

    type_name: str = "-"
    num_bytes: int = 0


@dataclass(frozen=True)
class CodeRows:
    """Codes as another format stores them: uint8 ``data`` of rows in a type (TQ1_0, TQ2_0, Q4_0, I2_S of x86).

    ``order``, int32 ``[O]``, says which stored row is row i; None when they stand in our order. Blocks whose scale is 0
    must hold codes of 0. The engine turns such rows into its own blocks without unpacking them to int8.
    """

    type_name: str
    data: NDArray[np.uint8]
    order: NDArray[np.int32] | None
    scales: NDArray[np.float32]


@dataclass(frozen=True)
class StoredCodes:
    """A way to read a layer that also tells how its source has it: ``unpack`` gives what `TernaryPart.read` does."""

    rows: CodeRows
    unpack: Callable[[], tuple[NDArray[np.int8], NDArray[np.float32]]]

    def __call__(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        return self.unpack()


@dataclass(frozen=True)
class TernaryPart:
    """A ternary layer under its full name, without ``.weight``; codes and scales are computed when asked for.

    ``read`` gives ternary values int8 ``[O, I]`` and scales float32 ``[1]``, ``[O]`` or ``[O, G]``; a weight is the
    product of the two. ``bias``: float32 ``[O]``. ``factors``: U float32 ``[O, r]`` and V^T ``[r, I]`` of a low-rank
    correction, which takes inputs that are not rounded. ``read`` may be `StoredCodes`.
    """

    name: str
    shape: tuple[int, int]
    read: Callable[[], tuple[NDArray[np.int8], NDArray[np.float32]]]
    bias: NDArray[np.float32] | None = None
    factors: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    stored: Stored = Stored()

    @property
    def rank(self) -> int:
        """The rank of the low-rank correction, 0 when there is none."""
        return 0 if self.factors is None else self.factors[1].shape[0]

    @property
    def num_parameters(self) -> int:
        rows, columns = self.shape
        return rows * columns + (0 if self.bias is None else rows) + self.rank * (rows + columns)

    def codes_and_scales(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Return ternary values int8 ``[O, I]`` and scales float32.

        Raises: FormatError when they are not ternary values of this shape, or a scale is no finite number.
        """
        codes, scales = self.read()
        self.check_scales(scales)
        if codes.dtype != np.int8 or codes.shape != self.shape:
            raise FormatError(
                f"{self.name}: found codes {codes.dtype} {list(codes.shape)}, int8 {list(self.shape)} are needed; only "
                "ternary codes can be written, never latent weights"
            )
        if codes.size and (int(codes.min()) < -1 or int(codes.max()) > 1):
            raise FormatError(f"{self.name}: found codes from {codes.min()} to {codes.max()}, -1 to 1 are allowed")
        return codes, scales

    def check_scales(self, scales: NDArray[np.float32]) -> None:
        """Raise FormatError when scales are of another type or number, or one of them is no finite number."""
        rows = self.shape[0]
        if scales.dtype != np.float32 or (scales.shape not in ((1,), (rows,)) and scales.shape[:1] != (rows,)):
            raise FormatError(f"{self.name}: found scales {scales.dtype} {list(scales.shape)} for {rows} rows")
        if not np.isfinite(scales).all():
            raise FormatError(f"{self.name}: holds a scale that is no finite number")


@dataclass(frozen=True)
class TablePart:
    """The embedding (``model.embed_tokens``) or an untied head (``lm_head``); ``read`` gives float32 ``[V, D]``.

    ``quantized`` gives the same values as a packed directory stores them, for a source that has them in such a form.
    ``read_rows`` (begin, end) gives some rows, for a source that need not read all of them for it.
    """

    name: str
    shape: tuple[int, int]
    read: Callable[[], NDArray[np.float32]]
    stored: Stored = Stored()
    quantized: Callable[[], QuantizedTable] | None = None
    read_rows: Callable[[int, int], NDArray[np.float32]] | None = None

    @property
    def num_parameters(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class NormPart:
    """The gains float32 ``[D]`` of an RMSNorm, what a normed vector is multiplied by; ``eps`` where it is its own."""

    name: str
    gains: NDArray[np.float32]
    eps: float | None = None
    stored: Stored = Stored()

    @property
    def num_parameters(self) -> int:
        return int(self.gains.size)


Part = TernaryPart | TablePart | NormPart


@dataclass(frozen=True)
class ModelParts:
    """A whole model.

    ``place`` names the source in messages. ``config``: the object of a Hugging Face config.json, without
    ``wrinklefree``. ``info``: what that object of a packed directory would say; its ``embedding`` and ``layout`` are
    what a packed directory of this model would get. ``files``: the tokenizer's files and generation_config.json, byte
    for byte.
    """

    place: str
    config: Mapping[str, Any]
    info: PackedInfo
    parts: tuple[Part, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """How many numbers there are; a tied table counts once."""
        return sum(part.num_parameters for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of the parts in their source."""
        return sum(part.stored.num_bytes for part in self.parts)


def stored_tables(model: ModelParts) -> dict[str, QuantizedTable]:
    """Return each table in the precision of ``model.info.embedding``: as the source stores it, else rounded to it.

    Raises: InputError when the values do not fit the precision.
    """
    tables = {}
    for part in model.parts:
        if not isinstance(part, TablePart):
            continue
        stored = None if part.quantized is None else part.quantized()
        kept = stored is not None and stored.format == model.info.embedding
        tables[part.name] = stored if stored and kept else quantize_table(part.read(), model.info.embedding)
    return tables


@dataclass(frozen=True)
class TensorChange:
    """What became of one part of the model: its type before and after, and what each costs in bytes."""

    name: str
    source_type: str
    source_bytes: int
    written_type: str
    written_bytes: int
