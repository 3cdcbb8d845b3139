"""`wf export`: what was written, what each part costs, and how it compares with its source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.cli.output import Output, progress

if TYPE_CHECKING:
    from wrinklefree.export.export import ExportReport


def run(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="a checkpoint directory (wf convert, wf train)")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the directory to write; must not exist")],
    format: Annotated[str, typer.Option(help="packed, or plain (for transformers)")] = "packed",
    embedding: Annotated[str, typer.Option(help="precision of embedding and head: q8, q6, q4 or f16")] = "q8",
    bits: Annotated[str, typer.Option(help="bits of a ternary weight: 2 or 1.6 (smaller)")] = "2",
    verify: Annotated[bool, typer.Option(help="read back and compare with the source")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: physical cores")] = None,
    json: Annotated[
        Path | None, typer.Option(help="write the report as JSON to this file (- is standard output)")
    ] = None,
) -> None:
    """Ternarises once, writes, reads back, compares with the source, and only then gives the result its name."""
    output = Output(json)
    if format == "plain":
        from wrinklefree.models.plain import export_plain

        export_plain(source, out)
        output.line(f"wrote {out}: ternary values as floats, for from_pretrained; activations are not int8 there")
        output.finish({"source": str(source), "out": str(out), "format": format})
        return
    from wrinklefree.export.export import export

    with progress("export") as show:
        report = export(source, out, format, embedding, bits, verify, threads, show=show)  # type: ignore[arg-type]
    output.table("what changed", ("part", "count", "was", "bytes", "is now", "bytes now"), _changes(report))
    for line in _summary(report):
        output.line(line)
    output.finish(report.to_json())


def _changes(report: ExportReport) -> Iterator[tuple[str, ...]]:
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for change in report.tensors:
        name = re.sub(r"\.\d+\.", ".*.", change.name)
        groups.setdefault((name, change.source_type, change.written_type), []).append(change)
    for (name, was, now), changes in groups.items():
        before, after = sum(c.source_bytes for c in changes), sum(c.written_bytes for c in changes)
        yield name, str(len(changes)), was, f"{before:,}", now, f"{after:,}"


def _summary(report: ExportReport) -> list[str]:
    lines = [
        f"{report.num_parameters:,} parameters: {report.source_bytes:,} bytes became {report.written_bytes:,} "
        f"({report.bits_per_weight:.3f} bits a weight, {report.bits_per_ternary_weight:.3f} in ternary layers)"
    ]
    if report.codes is not None:
        lines.append(
            f"re-read: codes and scales of {report.codes.layers} layers equal, {report.codes.zeros_written:.2%} zeros"
        )
    if report.agreement is None:
        lines.append("not verified against the source (--no-verify)")
    else:
        found = report.agreement
        lines.append(
            f"engine against source: lowest cosine of logits {found.logit_cosine_min:.6f} (rounding noise alone gives "
            f"{found.noise_cosine_min:.6f}), largest difference {found.logit_max_abs_difference:.2e}, greedy tokens "
            f"equal {found.greedy_tokens_equal} of {found.greedy_tokens}"
        )
        for d in found.differences:
            lines.append(
                f"  token {d.position} after {d.prompt!r}: engine {d.engine_token!r}, source {d.source_token!r}; "
                f"a tie, the logits differ by {d.logit_gap:.1e} and rounding noise moves that by {d.error_bound:.1e}"
            )
    lines.append(f"wrote {report.out} in {report.seconds:.1f} s; try: wf generate {report.out} --prompt 'Hello'")
    return lines
