"""`wf eval`: loss, perplexity and bits per byte of any model on any text, and agreement with a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wrinklefree.cli.output import Output, progress
from wrinklefree.errors import InputError, unknown_name

if TYPE_CHECKING:
    from wrinklefree.eval.likelihood import LikelihoodReport
    from wrinklefree.eval.loss import LossReport


LIKELIHOODS = ("ar", "block")


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="a packed model, a checkpoint, a Hugging Face id or directory, a .gguf file, or a server: "
            "http://HOST:PORT[/v1][#NAME]",
        ),
    ],
    perplexity: Annotated[
        str, typer.Option(metavar="FILE|NAME", help="text to score: a file, a directory, or python-docs (offline)")
    ] = "python-docs",
    teacher: Annotated[str | None, typer.Option(help="a second model with the same tokenizer to compare with")] = None,
    window: Annotated[int, typer.Option(help="tokens of a window")] = 512,
    stride: Annotated[int | None, typer.Option(help="tokens between windows; default: the window")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="score about so many tokens, spread over the text")] = None,
    likelihood: Annotated[
        str, typer.Option(help="ar (each token from those before it) or block (a diffusion model's bound, by masks)")
    ] = "ar",
    samples: Annotated[int, typer.Option(min=2, help="masks of each block, for --likelihood block")] = 8,
    seed: Annotated[int, typer.Option(help="of the masks")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: physical cores")] = None,
    json: Annotated[Path | None, typer.Option(help="write the figures as JSON (- is standard output)")] = None,
) -> None:
    """A packed model or ternary file runs on the engine, an http address is asked, everything else runs on torch."""
    output = Output(json)
    if likelihood not in LIKELIHOODS:
        raise unknown_name("--likelihood", likelihood, LIKELIHOODS)
    if likelihood == "block":
        _block(output, model, perplexity, (teacher, stride), (window, limit, samples, seed, threads))
        return
    from wrinklefree.eval.perplexity import perplexity as measure

    with progress("eval") as show:
        report = measure(
            model,
            perplexity,
            window=window,
            stride=stride,
            limit_tokens=limit,
            teacher=teacher,
            threads=threads,
            on_window=lambda done, of: show(done / of, f"window {done} of {of}"),
            say=output.line,
        )
    output.line(f"{report.model} ({report.runs_on}): {_line(report.loss)}")
    if report.teacher and report.agreement:
        found = report.agreement
        output.line(f"{teacher}: {_line(report.teacher)}")
        output.line(
            f"agreement: KL {found.kl:.4f} nats, same first token {found.top1:.2%}, answers that flip {found.flips:.2%}"
        )
    output.finish(report.to_json())


def _block(
    output: Output,
    model: str,
    text: str,
    refused: tuple[str | None, int | None],
    settings: tuple[int, int | None, int, int, int | None],
) -> None:
    if any(each is not None for each in refused):
        raise InputError("--likelihood block: --teacher and --stride go with --likelihood ar; leave them out")
    window, limit, samples, seed, threads = settings
    from wrinklefree.eval.likelihood import block_likelihood

    with progress("eval") as show:
        report = block_likelihood(
            model,
            text,
            window=window,
            limit_tokens=limit,
            samples=samples,
            seed=seed,
            threads=threads,
            on_window=lambda done, of: show(done / of, f"window {done} of {of}"),
        )
    _show_block(output, report)
    output.finish(report.to_json())


def _show_block(output: Output, report: LikelihoodReport) -> None:
    found = report.block
    size = f"blocks of {found.block_size}" if found.block_size else "whole windows"
    per_byte = f", {found.bits_per_byte:.4f} bits a byte" if found.bits_per_byte is not None else ""
    output.line(
        f"{report.model} ({report.runs_on}), {size}: loss at most {found.loss:.4f} ± {found.standard_error:.4f} nats, "
        f"perplexity {found.perplexity:,.2f}{per_byte} on {found.tokens:,} tokens of {found.text}, windows of "
        f"{found.window}, {found.samples} masks a block"
    )
    output.line(f"token by token: {_line(report.ar) if report.ar else 'none, ' + report.no_ar}")


def _line(loss: LossReport) -> str:
    per_byte = f", {loss.bits_per_byte:.4f} bits a byte" if loss.bits_per_byte is not None else ""
    return (
        f"loss {loss.loss:.4f} nats, perplexity {loss.perplexity:,.2f}{per_byte} on {loss.tokens:,} tokens of "
        f"{loss.text}, windows of {loss.window} every {loss.stride}"
    )
