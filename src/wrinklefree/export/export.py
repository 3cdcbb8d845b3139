"""`export`: ternarise once, write, read back and compare, and only then give the result its name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wrinklefree.artifact.config import parse_config
from wrinklefree.artifact.diffusion_marker import DiffusionMarker
from wrinklefree.artifact.files import new_directory
from wrinklefree.artifact.manifest import PackedInfo, model_format, read_config
from wrinklefree.artifact.packed_writer import write_packed
from wrinklefree.artifact.packing import DENSE_LAYOUT, LAYOUT, Layout
from wrinklefree.artifact.parts import TensorChange, TernaryPart
from wrinklefree.artifact.tables import TABLE_FORMATS, QuantizedTable, TableFormat
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.engine import Engine
from wrinklefree.errors import InputError, VerificationError, unknown_name
from wrinklefree.export.block_replay import BlockAgreement, compare_block_decoding
from wrinklefree.export.tables import MOMENT_FORMATS, head_moments, quantized_tables
from wrinklefree.export.verify import PROMPTS, Agreement, CodesCheck, check_codes, compare_engine_with_torch
from wrinklefree.export.walk import model_parts
from wrinklefree.models.io import CheckpointInfo, load_checkpoint
from wrinklefree.quant.low_rank import low_rank_linears

LAYOUTS: dict[str, Layout] = {"2": LAYOUT, "1.6": DENSE_LAYOUT}  # by bits a ternary weight

# A format writes a whole model directory from (directory, parts, tables).
FORMATS: dict[str, Callable[..., list[TensorChange]]] = {"packed": write_packed}


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
    codes: CodesCheck | None
    agreement: Agreement | None
    blocks: BlockAgreement | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            **{name: getattr(self, name) for name in ("format", "num_parameters", "source_bytes", "written_bytes")},
            "source": str(self.source),
            "out": str(self.out),
            "bits_per_weight": self.bits_per_weight,
            "bits_per_ternary_weight": self.bits_per_ternary_weight,
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "codes": None if self.codes is None else asdict(self.codes),
            "agreement": None if self.agreement is None else self.agreement.to_json(),
            "blocks": None if self.blocks is None else self.blocks.to_json(),
            "seconds": self.seconds,
        }


def export(
    src_dir: str | Path,
    out_dir: str | Path,
    format: str = "packed",
    embedding: TableFormat = "q8",
    bits: str = "2",
    verify: bool = True,
    threads: int | None = None,
    greedy_tokens: int = 32,
    show: Callable[[float, str], None] = lambda share, what: None,
) -> ExportReport:
    """Write the converted model in ``src_dir`` as ``out_dir``, which must not exist, and return the report.

    ``embedding``: precision of the embedding and of an untied head; ``bits`` of a ternary weight, "2" or "1.6" (the
    same values in fewer bytes). ``show`` is told the share done, from 0 to 1, and what is going on.

    Raises: InputError for a wrong source, an unknown format, an existing output or lack of space;
    VerificationError when the result does not behave like its source. Either leaves nothing under ``out_dir``.
    """
    start = time.perf_counter()
    source, out = Path(src_dir), Path(out_dir)
    if format not in FORMATS:
        raise unknown_name("export format", format, FORMATS)
    if embedding not in TABLE_FORMATS:
        raise unknown_name("embedding precision", embedding, TABLE_FORMATS)
    if bits not in LAYOUTS:
        raise unknown_name("bits of a ternary weight", bits, LAYOUTS)
    with new_directory(out) as directory, _torch_threads(threads):
        config = _checkpoint_config(source)
        tokenizer = Tokenizer.load(source)
        show(0.0, "loading the source")
        model, _, checkpoint = load_checkpoint(source)
        ranks = {name: layer.rank for name, layer in low_rank_linears(model)}
        info = replace(_packed_info(checkpoint, embedding, LAYOUTS[bits]), low_rank=ranks)
        parts = model_parts(model, source, config, info)
        show(0.2, "ternarising and writing")
        moments = head_moments(model, tokenizer.encode) if embedding in MOMENT_FORMATS else None
        tables = quantized_tables(model, embedding, moments)
        tensors = FORMATS[format](directory, parts, tables)
        codes = agreement = blocks = None
        if verify:
            show(0.4, "reading back")
            codes = check_codes(directory, model, tables)
            show(0.6, "comparing with the source")
            engine = Engine.load(directory, threads=threads, kv_type="float32")
            agreement = _compare(engine, model, tables, greedy_tokens)
            if checkpoint.dlm is not None:
                show(0.8, "decoding blocks beside the source")
                blocks = _compare_blocks(engine, model, tables, greedy_tokens, checkpoint.dlm)
        ternary = {part.name: part.shape for part in parts.parts if isinstance(part, TernaryPart)}
        ternary_bytes = sum(change.written_bytes for change in tensors if change.name in ternary)
        ternary_weights = sum(rows * columns for rows, columns in ternary.values())
        written = sum(change.written_bytes for change in tensors)
        parameters = parts.num_parameters
        return ExportReport(
            source=source,
            out=out,
            format=format,
            num_parameters=parameters,
            source_bytes=_total_bytes(source),
            written_bytes=_total_bytes(directory),
            bits_per_weight=8 * written / parameters,
            bits_per_ternary_weight=8 * ternary_bytes / ternary_weights,
            tensors=tuple(tensors),
            codes=codes,
            agreement=agreement,
            blocks=blocks,
            seconds=time.perf_counter() - start,
        )


def _checkpoint_config(source: Path) -> dict[str, Any]:
    config = read_config(source)
    kind = model_format(config)
    if kind == "hf":
        raise InputError(f"{source}: is not ternary yet; convert it first: wf convert {source} CHECKPOINT")
    if kind == "packed":
        raise InputError(f"{source}: is a packed model already")
    classes = [name for name in config.get("architectures") or () if str(name).endswith("ForSequenceClassification")]
    if classes:
        raise InputError(
            f"{source}: is a classifier ({classes[0]}); a packed model is for the engine, which writes text"
        )
    parse_config(config, f"{source}/config.json")  # a family the engine does not run is told before any work
    return config


def _packed_info(checkpoint: CheckpointInfo, embedding: TableFormat, layout: Layout) -> PackedInfo:
    return PackedInfo(
        granularity=checkpoint.spec.granularity,
        group_size=checkpoint.spec.group_size,
        embedding=embedding,
        layout=layout,
        subln=checkpoint.subln,
        stage=checkpoint.stage,
        dlm=checkpoint.dlm,
        teacher=checkpoint.teacher,
        calibration=checkpoint.calibration,
        tokens_seen=checkpoint.tokens_seen,
        recipe_hash=checkpoint.recipe_hash,
    )


def _compare(
    engine: Engine, model: torch.nn.Module, tables: Mapping[str, QuantizedTable], greedy_tokens: int
) -> Agreement:
    agreement = compare_engine_with_torch(engine, model, greedy_tokens=greedy_tokens, tables=tables)
    if not agreement.passed:
        unexplained = [d for d in agreement.differences if not d.explained]
        raise VerificationError(
            f"the engine does not behave like the source: lowest cosine of logits {agreement.logit_cosine_min:.5f} "
            f"({agreement.needed_cosine:.5f} is needed), greedy tokens equal {agreement.greedy_tokens_equal} of "
            f"{agreement.greedy_tokens}, differences without a tie: {len(unexplained)}; nothing was written"
        )
    return agreement


def _compare_blocks(
    engine: Engine,
    model: torch.nn.Module,
    tables: Mapping[str, QuantizedTable],
    num_tokens: int,
    dlm: Mapping[str, Any],
) -> BlockAgreement | None:
    """Return how a text decoded by blocks agrees; None for a model that the engine does not decode so."""
    marker = DiffusionMarker.of(dlm, "config.json")
    if marker.block_size is None or engine.context < 2 * marker.block_size:
        return None
    room = engine.context // marker.block_size * marker.block_size
    prompt = engine.tokenizer.encode(PROMPTS[0])[: room // 2]
    blocks = compare_block_decoding(engine, model, marker, prompt, num_tokens, tables=tables)
    if not blocks.passed:
        unexplained = next((d.what for d in blocks.differences if not d.explained), "none")
        raise VerificationError(
            f"the engine does not decode blocks like the source: probabilities differ by "
            f"{blocks.confidence_difference:.2g} (rounding noise makes {blocks.confidence_noise:.2g}), first "
            f"unexplained difference: {unexplained}; nothing was written"
        )
    return blocks


def _total_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
