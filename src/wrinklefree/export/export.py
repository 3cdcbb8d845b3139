"""`export`: read a source, decide, write, read back and compare, and only then give the result its name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from wrinklefree.artifact.files import new_directory, new_file
from wrinklefree.artifact.parts import TensorChange, TernaryPart
from wrinklefree.artifact.tables import TABLE_FORMATS, QuantizedTable
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.errors import InputError, unknown_name
from wrinklefree.export.block_replay import BlockAgreement
from wrinklefree.export.fit import Conversion
from wrinklefree.export.foreign import ForeignAgreement, check_program
from wrinklefree.export.formats import ALIASES, FORMATS, LAYOUTS, ExportOptions
from wrinklefree.export.source import Source, open_source
from wrinklefree.export.tables import MOMENT_FORMATS, head_moments, quantized_tables
from wrinklefree.export.verify import Agreement, CodesCheck
from wrinklefree.export.verify_written import Verified, verify_written
from wrinklefree.export.written import EngineAgreement


@dataclass(frozen=True)
class ExportReport:
    """What was written, what each part costs, and how the result compares with its source."""

    source: Path
    out: Path
    format: str
    num_parameters: int
    source_bytes: int
    written_bytes: int
    bits_per_weight: float
    bits_per_ternary_weight: float
    tensors: tuple[TensorChange, ...]
    conversions: tuple[Conversion, ...]
    notes: tuple[str, ...]
    codes: CodesCheck | None
    agreement: Agreement | None
    blocks: BlockAgreement | None
    engines: EngineAgreement | None
    foreign: ForeignAgreement | None
    tensors_equal: int | None
    seconds: float

    @property
    def lossy(self) -> bool:
        """Whether anything became something else by more than a rounded scale."""
        return any(conversion.kind == "lossy" for conversion in self.conversions)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            **{name: getattr(self, name) for name in ("format", "num_parameters", "source_bytes", "written_bytes")},
            "source": str(self.source),
            "out": str(self.out),
            "bits_per_weight": self.bits_per_weight,
            "bits_per_ternary_weight": self.bits_per_ternary_weight,
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "conversions": [asdict(conversion) for conversion in self.conversions],
            "notes": list(self.notes),
            "codes": None if self.codes is None else asdict(self.codes),
            "agreement": None if self.agreement is None else self.agreement.to_json(),
            "blocks": None if self.blocks is None else self.blocks.to_json(),
            "engines": None if self.engines is None else self.engines.to_json(),
            "tensors_equal": self.tensors_equal,
            "foreign": None if self.foreign is None else self.foreign.to_json(),
            "seconds": self.seconds,
        }


def export(
    src_dir: str | Path,
    out_dir: str | Path,
    format: str = "packed",
    embedding: str | None = None,
    bits: str = "2",
    verify: bool = True,
    threads: int | None = None,
    greedy_tokens: int = 32,
    show: Callable[[float, str], None] = lambda share, what: None,
    lossy: bool = False,
    fallback: str = "q4_0",
    verify_with: str | None = None,
) -> ExportReport:
    """Write a ternary model as ``out_dir``, which must not exist, and return the report.

    ``src_dir``: a checkpoint, or anything `read_parts` reads (a packed directory, a GGUF file, ...). ``embedding``:
    precision of the embedding and of an untied head, None for the format's own; ``bits`` of a packed ternary weight,
    "2" or "1.6" (the same values in fewer bytes). ``lossy``: convert what the format cannot hold, and measure the
    damage. ``fallback``: the type of a layer that a GGUF type cannot hold. ``verify_with``: a
    program to run on the result as well (`export.foreign`). ``show`` is told the share done, from 0 to
    1, and what is going on.

    Raises: InputError for a wrong source, an unknown format, a part that the format cannot hold, an existing output or
    lack of space; VerificationError when the result does not behave like its source. Either leaves nothing under
    ``out_dir``.
    """
    start = time.perf_counter()
    source, out = Path(src_dir), Path(out_dir)
    format = ALIASES.get(format, format)
    if format not in FORMATS:
        raise unknown_name("export format", format, FORMATS)
    entry = FORMATS[format]
    precision = entry.embeddings[0] if embedding is None else embedding
    if precision not in entry.embeddings:
        raise unknown_name("embedding precision", precision, entry.embeddings)
    if bits not in LAYOUTS:
        raise unknown_name("bits of a ternary weight", bits, LAYOUTS)
    if verify_with is not None and not verify:
        raise InputError("--verify-with and --no-verify: the first compares, the second does not; leave one out")
    if verify_with is not None:
        check_program(verify_with, format)
    with (new_file if entry.is_file else new_directory)(out) as path, _torch_threads(threads):
        show(0.0, "loading the source")
        loaded = open_source(source, format)
        options = ExportOptions(precision, bits, fallback, lossy, _tables(loaded, format, precision))
        plan = entry.plan(loaded.parts, options)
        show(0.2, "ternarising and writing")
        tensors = plan.write(path)
        found = Verified()
        if verify:
            found = verify_written(path, entry, plan, loaded, threads, greedy_tokens, show, verify_with)
        ternary = {part.name: part.shape for part in plan.fitted.parts if isinstance(part, TernaryPart)}
        ternary_bytes = sum(change.written_bytes for change in tensors if change.name in ternary)
        written = sum(change.written_bytes for change in tensors)
        return ExportReport(
            source=source,
            out=out,
            format=format,
            num_parameters=loaded.parts.num_parameters,
            source_bytes=_total_bytes(source),
            written_bytes=_total_bytes(path),
            bits_per_weight=8 * written / loaded.parts.num_parameters,
            bits_per_ternary_weight=8 * ternary_bytes / sum(rows * columns for rows, columns in ternary.values()),
            tensors=tuple(tensors),
            conversions=plan.conversions,
            notes=plan.notes,
            codes=found.codes,
            agreement=found.agreement,
            blocks=found.blocks,
            engines=found.engines,
            foreign=found.foreign,
            tensors_equal=found.tensors,
            seconds=time.perf_counter() - start,
        )


def _tables(loaded: Source, format: str, precision: str) -> dict[str, QuantizedTable] | None:
    """Return the tables of a torch model fitted for the inputs of its head, where the format takes them."""
    if format != "packed" or loaded.model is None:
        return None
    named = next(name for name in TABLE_FORMATS if name == precision)
    encode = Tokenizer.load(loaded.path).encode
    return quantized_tables(
        loaded.model, named, head_moments(loaded.model, encode) if named in MOMENT_FORMATS else None
    )


def _total_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(inner.stat().st_size for inner in path.iterdir() if inner.is_file())


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
