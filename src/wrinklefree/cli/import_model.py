"""`wf import`: what was read, what had to be rounded, and how the result compares with its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.cli.output import Output, progress
from wrinklefree.errors import InputError, unknown_name

if TYPE_CHECKING:
    from wrinklefree.export.import_packed import ImportReport

TARGETS = ("packed", "checkpoint", "hf")


def run(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="a .gguf or .bin file, or a ternary model's Hugging Face directory"),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the directory to write; must not exist")],
    to: Annotated[
        str,
        typer.Option(
            help="packed: for the engine; checkpoint: to train on; hf: plain floats for transformers, also of a GGUF "
            "file that is not ternary (a teacher)"
        ),
    ] = "packed",
    embedding: Annotated[
        str | None,
        typer.Option(
            help="packed: precision of embedding and head: q8, q6, q4, f16; default: f16 where that is exact and at "
            "most 128 MB, else q8"
        ),
    ] = None,
    bits: Annotated[str, typer.Option(help="packed: bits of a ternary weight, 2 or 1.6 (smaller)")] = "2",
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="where the tokenizer of a .bin file is, if not beside it")
    ] = None,
    verify: Annotated[bool, typer.Option(help="packed: read back and compare with the source")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: physical cores")] = None,
    json: Annotated[
        Path | None, typer.Option(help="write the report as JSON to this file (- is standard output)")
    ] = None,
) -> None:
    """Takes codes and scales exactly as the file has them, checks every claim of it, and verifies what was written."""
    output = Output(json)
    if to not in TARGETS:
        raise unknown_name("target", to, TARGETS)
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: exists already; choose another output directory or remove this one")
    if to == "packed":
        from wrinklefree.export.import_packed import import_packed

        with progress("import") as show:
            report = import_packed(source, out, embedding, bits, verify, threads, show, tokenizer)
        _show(report, output)
        output.finish(report.to_json())
        return
    if embedding is not None or bits != "2":
        raise InputError(f"--embedding and --bits belong to --to packed; --to {to} keeps every value as it is")
    from wrinklefree.export.import_torch import import_checkpoint, import_plain

    figures: dict[str, Any] = {"source": str(source), "out": str(out), "to": to}
    with progress("import") as show:
        figures |= (import_checkpoint if to == "checkpoint" else import_plain)(source, out, show, tokenizer)
    if to == "checkpoint":
        output.line(f"wrote {out}: {figures['layers']} ternary layers, whose codes are the source's")
    else:
        output.line(f"wrote {out}: {figures['parameters']:,} parameters as floats, for from_pretrained")
    output.finish(figures)


def _show(report: ImportReport, output: Output) -> None:
    scales = f"groups of {report.group_size}" if report.group_size else f"one per {report.granularity}"
    output.line(
        f"{report.num_parameters:,} parameters, scales: {scales}; {report.source_bytes:,} bytes became "
        f"{report.written_bytes:,}"
    )
    for table in report.tables:
        change = (
            "exact" if not table.largest else f"rounded by {table.relative:.2%} (largest change {table.largest:.2g})"
        )
        output.line(f"{table.name}: {table.source_type} as {table.written}: {change}")
    if report.reread is not None:
        output.line(f"read back: {report.reread.layers} ternary layers equal, {report.reread.zeros:.1%} zeros in both")
    if report.text is not None:
        output.line(f"the engine goes on: {report.text!r}")
    if isinstance(report.agreement, str):
        output.line(report.agreement)
    else:
        found = report.agreement
        cosine, noise = found["logit_cosine_min"], found["noise_cosine_min"]
        output.line(
            f"against torch with the same parts: lowest cosine of logits {cosine:.6f} (noise of rounding {noise:.6f}), "
            f"torch chooses {found['same_choices']} of the engine's {found['of']} greedy tokens, "
            f"{found['greedy_tokens_equal']} before the first difference of a text"
        )
    output.line(f"wrote {report.out} in {report.seconds:.1f} s")
