"""A ternary model of another program as a packed directory, verified; torch is asked where it is installed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.artifact.files import new_directory
from wrinklefree.artifact.packed_reader import packed_parts
from wrinklefree.artifact.packed_writer import write_packed
from wrinklefree.artifact.parts import ModelParts, TablePart, TensorChange, TernaryPart, stored_tables
from wrinklefree.artifact.sources import read_parts
from wrinklefree.artifact.tables import TABLE_FORMATS, QuantizedTable, TableFormat
from wrinklefree.engine import DecodingSettings, Engine, SamplingParams
from wrinklefree.errors import VerificationError, unknown_name
from wrinklefree.export.formats import LAYOUTS

# A torch model takes four bytes for each weight; beyond this many the comparison is left out, and the report says so.
MOST_PARAMETERS_IN_TORCH = 1_000_000_000
PROMPT = "The capital of France is"
GREEDY_TOKENS = 16


@dataclass(frozen=True)
class TableRounding:
    """What became of the embedding or an untied head; both figures are 0 where nothing was rounded.

    ``largest``: the largest change of a value. ``relative``: root mean square of the change over that of the values.
    """

    name: str
    source_type: str
    written: TableFormat
    largest: float
    relative: float


@dataclass(frozen=True)
class Reread:
    """What reading the written directory back found: layers equal to the source's, and their share of zeros."""

    layers: int
    zeros: float


@dataclass(frozen=True)
class ImportReport:
    """What was imported, what had to be rounded, and how the result compares with its source.

    ``agreement``: the engine against a torch model of the same parts, or why it was not compared. ``text``: what the
    engine goes on with after `PROMPT`; None without a tokenizer.
    """

    source: Path
    out: Path
    to: str
    granularity: str
    group_size: int | None
    num_parameters: int
    source_bytes: int
    written_bytes: int
    tables: tuple[TableRounding, ...]
    tensors: tuple[TensorChange, ...]
    reread: Reread | None
    text: str | None
    agreement: dict[str, Any] | str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "source": str(self.source), "out": str(self.out)}


def import_packed(
    source: Path,
    out: Path,
    embedding: str | None = None,
    bits: str = "2",
    verify: bool = True,
    threads: int | None = None,
    show: Callable[[float, str], None] = lambda share, what: None,
    tokenizer: Path | None = None,
) -> ImportReport:
    """Write the model in ``source``, of any format that `read_parts` reads, as the packed directory ``out``.

    ``embedding`` None: what the reader proposes, which is exact for a float16 table of up to 128 MB, else 8 bits.
    ``tokenizer``: the directory of a ``.bin`` file's tokenizer.

    Raises: InputError for a wrong option or an existing ``out``; FormatError for a damaged or not ternary source;
    VerificationError when the result does not behave like its source. Nothing is left under ``out`` then.
    """
    start = time.perf_counter()
    if bits not in LAYOUTS:
        raise unknown_name("bits of a ternary weight", bits, LAYOUTS)
    if embedding is not None and embedding not in TABLE_FORMATS:
        raise unknown_name("embedding precision", embedding, TABLE_FORMATS)
    with new_directory(out) as directory:
        show(0.0, "reading the source")
        found = read_parts(source, tokenizer)
        precision = next((name for name in TABLE_FORMATS if name == embedding), found.info.embedding)
        model = replace(found, info=replace(found.info, layout=LAYOUTS[bits], embedding=precision))
        tables = stored_tables(model)
        show(0.2, "writing")
        tensors = write_packed(directory, model, tables)
        rounding = tuple(_rounding(part, tables) for part in model.parts if isinstance(part, TablePart))
        reread, text = None, None
        agreement: dict[str, Any] | str = "not verified"
        if verify:
            show(0.4, "reading back")
            reread = check_packed(directory, model)
            show(0.6, "running it")
            engine = Engine.load(directory, threads=threads, kv_type="float32")
            text = check_engine(engine, bool(model.files))
            show(0.8, "comparing with torch")
            agreement = _torch_agreement(engine, model, tables)
        return ImportReport(
            source=source,
            out=out,
            to="packed",
            granularity=model.info.granularity,
            group_size=model.info.group_size if model.info.granularity == "group" else None,
            num_parameters=model.num_parameters,
            source_bytes=model.num_bytes,
            written_bytes=sum(change.written_bytes for change in tensors),
            tables=rounding,
            tensors=tuple(tensors),
            reread=reread,
            text=text,
            agreement=agreement,
            seconds=time.perf_counter() - start,
        )


def check_packed(directory: Path, model: ModelParts) -> Reread:
    """Return what a packed directory holds beside the parts it was written from.

    Raises: VerificationError naming the first layer whose codes, scales or share of zeros differ.
    """
    written = {part.name: part for part in packed_parts(directory).parts if isinstance(part, TernaryPart)}
    layers = zeros = weights = 0
    for part in model.parts:
        if not isinstance(part, TernaryPart):
            continue
        codes, scales = part.codes_and_scales()
        again, stored = written[part.name].codes_and_scales()
        if not np.array_equal(codes, again) or not np.array_equal(scales, stored):
            raise VerificationError(f"{part.name}: the codes or scales that were written are not the source's")
        layers, weights = layers + 1, weights + codes.size
        zeros += codes.size - int(np.count_nonzero(again))
    return Reread(layers, zeros / max(1, weights))


def check_engine(engine: Engine, has_tokenizer: bool) -> str | None:
    """Let the engine go on with a prompt, and return the text; without a tokenizer, with token ids.

    Raises: VerificationError when a logit is no number.
    """
    prompt = engine.tokenizer.encode(PROMPT) if has_tokenizer else list(range(min(8, engine.vocab_size)))
    prompt = prompt[: max(1, engine.context // 2)]
    if np.isnan(engine.logits(prompt)).any():
        raise VerificationError("the engine's logits are no numbers; nothing was written")
    if not has_tokenizer:
        return None
    params = SamplingParams(max_tokens=GREEDY_TOKENS, temperature=0.0, top_p=1.0, seed=0, ignore_eos=True)
    tokens = engine.generate(prompt, params, DecodingSettings("ar")).run().tokens
    return engine.tokenizer.decode(tokens)


def _rounding(part: TablePart, tables: Mapping[str, QuantizedTable]) -> TableRounding:
    values, written = part.read(), tables[part.name]
    change = written.values() - values
    size = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
    relative = float(np.sqrt(np.mean(np.square(change, dtype=np.float64)))) / max(size, 1e-30)
    return TableRounding(part.name, part.stored.type_name, written.format, float(np.abs(change).max()), relative)


def _torch_agreement(engine: Engine, model: ModelParts, tables: Mapping[str, QuantizedTable]) -> dict[str, Any] | str:
    if not model.files:
        return "not compared with torch: the source has no tokenizer"
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        return "not compared with torch: torch and transformers are not installed"
    if model.num_parameters > MOST_PARAMETERS_IN_TORCH:
        return f"not compared with torch: {model.num_parameters:,} parameters take too much memory there"
    from wrinklefree.export.import_torch import compare_with_torch

    return compare_with_torch(engine, model, tables)
