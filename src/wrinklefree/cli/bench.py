"""`wf bench`: the engine's speed beside what this machine can do at most."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wrinklefree.cli.output import Output, progress
from wrinklefree.errors import InputError


def run(
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="a packed model or ternary GGUF file")] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="random weights of bitnet-2b, smollm2-135m, qwen3-0.6b, llama-3b or llama-8b"),
    ] = None,
    type: Annotated[
        str | None, typer.Option(help="bits of a ternary weight: t2 or t1.6; default: as stored, t2 for a shape")
    ] = None,
    granularity: Annotated[str | None, typer.Option(help="scales of a shape: tensor, row or group")] = None,
    group_size: Annotated[int, typer.Option(help="columns for each scale of --granularity group")] = 64,
    head: Annotated[str, typer.Option(help="embedding and head of a shape: q8, q6, q4 or f16")] = "q8",
    kv_type: Annotated[str, typer.Option(help="keys and values: float16, float32 or int8")] = "float16",
    threads: Annotated[str, typer.Option(help="numbers of threads, such as 1,2; default: physical cores")] = "",
    prompt: Annotated[int, typer.Option(help="tokens of the prompt test; 0 skips it")] = 512,
    decode: Annotated[int, typer.Option(help="tokens of the decode test; 0 skips it")] = 128,
    batch: Annotated[str, typer.Option(help="numbers of sequences decoded together, such as 1,4,8")] = "",
    block: Annotated[int, typer.Option(help="tokens of one pass with all logits; 0 skips it")] = 0,
    repeat: Annotated[int, typer.Option(help="how often each test runs")] = 5,
    kernels: Annotated[str, typer.Option(help="auto, or a table that wf doctor lists")] = "auto",
    json: Annotated[Path | None, typer.Option(help="write the figures as JSON (- is standard output)")] = None,
) -> None:
    """Shows medians over the repeats, and the shares of memory bandwidth and int8 peak measured in the same minute."""
    output = Output(json)
    from wrinklefree.eval.speed import SpeedOptions, measure_speed

    options = SpeedOptions(
        threads=_numbers("--threads", threads),
        prompt=prompt,
        decode=decode,
        batch=_numbers("--batch", batch),
        block=block,
        repeat=repeat,
        kernels=kernels,
        type=type,
        granularity=granularity,
        group_size=group_size,
        head=head,
        kv_type=kv_type,
    )
    with progress("bench") as show:
        figures = measure_speed(model, shape, options, show)
    machine, subject = figures["machine"], figures["model"]
    output.line(
        f"{machine['cpu']}, {machine['isa']} ({_reason(kernels)}): reads {machine['read_gb_s']} GB/s, "
        f"{machine['int8_gops']} int8 GOP/s with {machine['threads']} threads"
    )
    output.line(
        f"{subject['name']}: {subject['params']:,} parameters, {subject['bytes_per_token']:,} bytes a token, "
        f"{subject['bits_per_weight']} bits a weight"
    )
    columns = ("test", "threads", "tokens/s", "least", "most", "GB/s", "of bandwidth", "of int8 peak")
    output.table("speed", columns, [_row(result) for result in figures["results"]])
    output.finish(figures)


def _reason(kernels: str) -> str:
    from wrinklefree.engine.native import load_native

    return str(load_native().kernels.select(kernels)[1])


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"{option}: found {text!r}, needed are whole numbers such as 1,2,4") from None


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    speed = result["tok_s"]
    return (
        result["test"],
        str(result["threads"]),
        *(f"{speed[key]:,.1f}" for key in ("median", "min", "max")),
        f"{result['gb_s']:.2f}",
        f"{result['bandwidth_share']:.0%}",
        f"{result['compute_share']:.0%}",
    )
