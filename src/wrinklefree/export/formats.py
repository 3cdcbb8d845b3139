"""The formats `wf export` writes, each with how it is planned, how it is read back, and what its result is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wrinklefree.artifact.packed_reader import packed_parts
from wrinklefree.artifact.packed_writer import write_packed
from wrinklefree.artifact.packing import DENSE_LAYOUT, LAYOUT, Layout
from wrinklefree.artifact.parts import ModelParts, NormPart, TablePart, TensorChange, stored_tables
from wrinklefree.artifact.tables import TABLE_FORMATS, QuantizedTable
from wrinklefree.errors import unknown_name
from wrinklefree.export.fit import FilePlan

LAYOUTS: dict[str, Layout] = {"2": LAYOUT, "1.6": DENSE_LAYOUT}  # by bits a ternary weight


@dataclass(frozen=True)
class ExportOptions:
    """What a user may choose. ``embedding`` is one of the format's; ``bits`` of a ternary weight concern packed.

    ``fallback``: GGUF's type of a layer that the asked type cannot hold. ``lossy``: convert what a format cannot hold.
    ``tables``: the embedding and head, quantised already with the head's inputs in view, where that was possible.
    """

    embedding: str
    bits: str = "2"
    fallback: str = "q4_0"
    lossy: bool = False
    tables: Mapping[str, QuantizedTable] | None = None


@dataclass(frozen=True)
class Format:
    """One format. ``plan`` refuses what it cannot hold; ``read`` gives back what was written under a path.

    ``read`` None: the format is not read back as a ternary model; ``check`` compares its bytes with the plan instead.
    ``embeddings``: the precisions of embedding and head, the default first. ``is_file``: OUT is a file.
    """

    about: str
    plan: Callable[[ModelParts, ExportOptions], FilePlan]
    read: Callable[[Path], ModelParts] | None
    embeddings: tuple[str, ...]
    is_file: bool = False
    check: Callable[[Path, FilePlan], int] | None = None


def _plan_packed(model: ModelParts, options: ExportOptions) -> FilePlan:
    if options.bits not in LAYOUTS:
        raise unknown_name("bits of a ternary weight", options.bits, LAYOUTS)
    precision = next(name for name in TABLE_FORMATS if name == options.embedding)
    info = replace(model.info, embedding=precision, layout=LAYOUTS[options.bits], files={})
    tables = options.tables or stored_tables(replace(model, info=info))
    parts = tuple(_as_table(part, tables) if isinstance(part, TablePart) else part for part in model.parts)
    written = replace(model, info=info, parts=parts)

    def write(path: Path) -> list[TensorChange]:
        return write_packed(path, written, tables)

    return FilePlan(written, written, write)


def _as_table(part: TablePart, tables: Mapping[str, QuantizedTable]) -> TablePart:
    table = tables[part.name]
    return replace(part, read=table.values, quantized=lambda: table)


def _gguf(ternary: str) -> Callable[[ModelParts, ExportOptions], FilePlan]:
    def plan(model: ModelParts, options: ExportOptions) -> FilePlan:
        from wrinklefree.export.gguf import GgufOptions, plan_gguf

        return plan_gguf(model, GgufOptions(ternary, options.embedding, options.fallback, options.lossy))

    return plan


def _read_gguf(path: Path) -> ModelParts:
    from wrinklefree.artifact.gguf.read_model import gguf_parts

    return gguf_parts(path)


def _plan_hf(model: ModelParts, options: ExportOptions) -> FilePlan:
    from wrinklefree.export.hf_bitnet import NAME, prepare_hf, write_hf
    from wrinklefree.export.one_scale_model import one_scale_model

    fitted, conversions = one_scale_model(model, NAME, options.lossy)
    return FilePlan(fitted, prepare_hf(fitted), lambda path: write_hf(path, fitted), conversions, _epsilon_note(model))


def _plan_bin(model: ModelParts, options: ExportOptions) -> FilePlan:
    from wrinklefree.artifact.sgl_bin import bin_parts
    from wrinklefree.export.one_scale_model import one_scale_model
    from wrinklefree.export.sgl_bin import NAME, prepare_bin, write_sgl_bin

    fitted, conversions = one_scale_model(model, NAME, options.lossy)
    written = prepare_bin(fitted)

    def read(path: Path) -> ModelParts:
        return replace(bin_parts(path), files=written.files)

    notes = ("a .bin file has no tokenizer: keep the tokenizer's files beside it", *_epsilon_note(model))
    return FilePlan(fitted, written, lambda path: write_sgl_bin(path, fitted), conversions, notes, read)


def _read_bin(path: Path) -> ModelParts:
    from wrinklefree.artifact.sgl_bin import bin_parts

    return bin_parts(path)


def _epsilon_note(model: ModelParts) -> tuple[str, ...]:
    """What formats with one epsilon for all norms make of SubLN (`hf_model`)."""
    if not any(isinstance(part, NormPart) and part.eps is not None for part in model.parts):
        return ()
    return ("SubLN's epsilons became one; the scales of v_proj and up_proj make it the same model, to a last bit",)


def _plan_plain(model: ModelParts, options: ExportOptions) -> FilePlan:
    from wrinklefree.export.hf_plain import PlainOptions, write_plain

    plain = PlainOptions(lossy=options.lossy)
    notes = (
        "plain floats: transformers does not round activations to int8, as the ternary layers do",
        *_epsilon_note(model),
    )
    return FilePlan(model, model, lambda path: write_plain(path, model, plain), (), notes)


def _check_plain(path: Path, plan: FilePlan) -> int:
    from wrinklefree.export.hf_plain import check_plain

    return check_plain(path, plan.written)


def _read_hf(path: Path) -> ModelParts:
    from wrinklefree.artifact.huggingface.read_model import hf_parts

    return hf_parts(path)


_GGUF_EMBEDDINGS = ("f16", "f32", "bf16", "q8_0", "q6_k", "q5_1", "q5_0", "q4_1", "q4_0", "q8", "q6", "q4")

FORMATS: dict[str, Format] = {
    "packed": Format("a directory for wrinklefree's engine", _plan_packed, packed_parts, TABLE_FORMATS),
    "gguf-tq1_0": Format("a GGUF file for llama.cpp, 1.69 bits", _gguf("TQ1_0"), _read_gguf, _GGUF_EMBEDDINGS, True),
    "gguf-tq2_0": Format("a GGUF file for llama.cpp, 2.06 bits", _gguf("TQ2_0"), _read_gguf, _GGUF_EMBEDDINGS, True),
    "gguf-i2_s": Format("a GGUF file for bitnet.cpp, 2 bits", _gguf("I2_S"), _read_gguf, _GGUF_EMBEDDINGS, True),
    "hf": Format("a directory for transformers' BitNet layers", _plan_hf, _read_hf, ("exact",)),
    "hf-plain": Format("ternary values as floats, for transformers", _plan_plain, None, ("exact",), check=_check_plain),
    "bin": Format("the .bin file of early converters", _plan_bin, _read_bin, ("exact",), is_file=True),
}
ALIASES = {"plain": "hf-plain"}
