"""`wf export`: what was written, what each part costs, what had to change, and how it compares with its source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.cli.output import Output, progress

if TYPE_CHECKING:
    from wrinklefree.export.export import ExportReport
    from wrinklefree.export.foreign import ForeignAgreement
    from wrinklefree.export.written import EngineAgreement


def run(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="a checkpoint directory (wf convert, wf train), a packed directory, or a GGUF file"
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="the directory to write, or the file (gguf-*, bin); must not exist")
    ],
    format: Annotated[
        str,
        typer.Option(
            help="packed (wrinklefree); gguf-tq1_0, gguf-tq2_0 (llama.cpp); gguf-i2_s (bitnet.cpp); hf (transformers' "
            "BitNet layers); hf-plain (transformers, ternary values as floats); bin (early converters)"
        ),
    ] = "packed",
    embedding: Annotated[
        str | None,
        typer.Option(
            help="precision of embedding and head; packed: q8 (default), q6, q4, f16; gguf: f16 (default), f32, bf16, "
            "q8_0, q6_k, q5_1, q5_0, q4_1, q4_0"
        ),
    ] = None,
    bits: Annotated[str, typer.Option(help="packed: bits of a ternary weight, 2 or 1.6 (smaller)")] = "2",
    fallback: Annotated[
        str,
        typer.Option(
            help="gguf: the type of a layer whose columns do not fit, exact too: q4_0, q2_0 (smaller; new programs "
            "only), q8_0, f16; none refuses"
        ),
    ] = "q4_0",
    lossy: Annotated[bool, typer.Option(help="convert what the format cannot hold, and measure the damage")] = False,
    verify: Annotated[bool, typer.Option(help="read back and compare with the source")] = True,
    verify_with: Annotated[
        str | None,
        typer.Option(
            metavar="PROGRAM",
            help="also run PROGRAM on what was written: transformers, llama-cpp-python, node-llama-cpp, or the path of "
            "an executable",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: physical cores")] = None,
    json: Annotated[
        Path | None, typer.Option(help="write the report as JSON to this file (- is standard output)")
    ] = None,
) -> None:
    """Ternarises once, writes, reads back, compares with the source, and only then gives the result its name."""
    from wrinklefree.export.source import is_classifier

    output = Output(json)
    if format in ("plain", "hf-plain") and is_classifier(source):
        from wrinklefree.errors import InputError
        from wrinklefree.models.plain import export_plain

        if verify_with is not None:
            raise InputError("--verify-with: compares texts that are continued, a classifier writes none")
        export_plain(source, out)
        output.line(f"wrote {out}: ternary values as floats, for from_pretrained; activations are not int8 there")
        output.finish({"source": str(source), "out": str(out), "format": format})
        return
    from wrinklefree.export.export import export

    with progress("export") as show:
        report = export(
            source, out, format, embedding, bits, verify, threads,
            show=show, lossy=lossy, fallback=fallback, verify_with=verify_with,
        )  # fmt: skip
    output.table("what changed", ("part", "count", "was", "bytes", "is now", "bytes now"), _changes(report))
    if report.conversions:
        output.table("what the format could not hold as it was", ("part", "count", "kind", "what"), _fitted(report))
    for line in _summary(report):
        output.line(line)
    output.finish(report.to_json())


def _changes(report: ExportReport) -> Iterator[tuple[str, ...]]:
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for change in report.tensors:
        groups.setdefault((_pattern(change.name), change.source_type, change.written_type), []).append(change)
    for (name, was, now), changes in groups.items():
        before, after = sum(c.source_bytes for c in changes), sum(c.written_bytes for c in changes)
        yield name, str(len(changes)), was, f"{before:,}", now, f"{after:,}"


def _fitted(report: ExportReport) -> Iterator[tuple[str, ...]]:
    """One row for the layers to which the same thing happened; of their figures the last layer's is shown."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for found in report.conversions:
        words = re.sub(r"\d[\d.e+-]*", "#", found.what)
        groups.setdefault((_pattern(found.name), found.kind, words), []).append(found.what)
    for (name, kind, _), whats in groups.items():
        yield name, str(len(whats)), kind, max(whats, key=_largest)


def _largest(what: str) -> float:
    return max((float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", what)), default=0.0)


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _summary(report: ExportReport) -> list[str]:
    lines = [
        f"{report.num_parameters:,} parameters: {report.source_bytes:,} bytes became {report.written_bytes:,} "
        f"({report.bits_per_weight:.3f} bits a weight, {report.bits_per_ternary_weight:.3f} in ternary layers)"
    ]
    lines += [f"note: {note}" for note in report.notes]
    if report.tensors_equal is not None:
        lines.append(f"re-read: {report.tensors_equal} tensors equal bit for bit")
    elif report.codes is None:
        lines.append("not verified against the source (--no-verify)")
    else:
        lines.append(
            f"re-read: codes and scales of {report.codes.layers} layers equal, {report.codes.zeros_written:.2%} zeros"
        )
    if report.agreement is not None:
        found = report.agreement
        lines.append(
            f"engine against source: lowest cosine of logits {found.logit_cosine_min:.6f} (rounding noise alone gives "
            f"{found.noise_cosine_min:.6f}), largest difference {found.logit_max_abs_difference:.2e}, the source "
            f"chooses {found.same_choices} of the engine's {found.greedy_tokens} greedy tokens, "
            f"{found.greedy_tokens_equal} before the first difference of a text"
        )
        for d in found.differences:
            lines.append(
                f"  token {d.position} after {d.prompt!r}: engine {d.engine_token!r}, source {d.source_token!r}; "
                f"a tie, the logits differ by {d.logit_gap:.1e} and rounding noise moves that by {d.error_bound:.1e}"
            )
    if report.engines is not None:
        lines += _damage(report.engines, report.lossy)
    if report.foreign is not None:
        lines += _foreign(report.foreign)
    what = f"wf generate {report.out} --prompt 'Hello'" if report.format == "packed" else f"wf inspect {report.out}"
    lines.append(f"wrote {report.out} in {report.seconds:.1f} s; try: {what}")
    return lines


def _foreign(found: ForeignAgreement) -> Iterator[str]:
    """What the program of --verify-with does beside our engine."""
    yield (
        f"{found.program} {found.version}: of the engine's {found.greedy_tokens} greedy tokens {found.same_choices} "
        f"are its first choice too; continuing by itself it gives {found.greedy_tokens_equal} before the first "
        f"difference; mean divergence {found.kl_mean:.1e} nats; distance from the unrounded reading "
        f"{found.distance:.3g}, the engine's {found.own_distance:.3g}"
    )
    for d in found.differences:
        yield (
            f"  token {d.position} after {d.prompt!r}: program {d.foreign_token!r}, engine {d.own_token!r}; the "
            f"engine's logits differ by {d.own_margin:.2g}, rounding activations explains {d.bound:.2g}"
        )


def _damage(found: EngineAgreement, lossy: bool) -> Iterator[str]:
    """What the conversion did to the model: the engine on the source against the engine on the file."""
    yield (
        f"{'damage (--lossy)' if lossy else 'file against source'}: cosine of logits {found.logit_cosine_mean:.6f} on "
        f"average, {found.logit_cosine_min:.6f} at the lowest; greedy tokens equal {found.greedy_tokens_equal} of "
        f"{found.greedy_tokens}"
    )
    if found.loss_source is not None and found.loss_written is not None:
        yield (
            f"  loss on {found.loss_tokens:,} held-out tokens: {found.loss_source:.4f} nats before, "
            f"{found.loss_written:.4f} after"
        )
