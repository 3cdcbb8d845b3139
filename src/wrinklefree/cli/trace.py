"""`wf trace`: a generation's trace as an animated picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wrinklefree.cli.output import Output
from wrinklefree.errors import InputError


def run(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="what wf generate --trace wrote")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the picture: a name that ends with .svg or .gif")],
    seconds: Annotated[float, typer.Option(min=0.02, max=60.0, help="how long each pass shows")] = 0.35,
) -> None:
    """Every position is a cell that fills in when its token is decided, coloured by the model's confidence."""
    output = Output(None)
    from wrinklefree.artifact.files import write_bytes
    from wrinklefree.eval.trace import read_trace

    kind = out.suffix.lower()
    if kind not in (".svg", ".gif"):
        raise InputError(f"{out}: found the ending {kind or 'none'}, allowed are .svg and .gif")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: the directory {out.parent} does not exist")
    found = read_trace(trace)
    if kind == ".svg":
        from wrinklefree.eval.trace_svg import svg

        write_bytes(out, svg(found, seconds).encode())
    else:
        from wrinklefree.eval.trace_gif import gif

        write_bytes(out, gif(found, seconds))
    output.line(f"{out}: {found.decided} tokens in {len(found.passes)} passes, {out.stat().st_size:,} bytes")
