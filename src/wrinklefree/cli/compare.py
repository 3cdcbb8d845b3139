"""`wf compare`: results of `wf eval` side by side, in one table and in pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wrinklefree.cli.output import Output
from wrinklefree.errors import InputError


def run(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT.json...", help="what wf eval --json wrote")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="write compare.md, compare.json and pictures there")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="write the table as JSON (- is standard output)")] = None,
) -> None:
    """Figures stand in one column only if they were measured in the same way; what does not compare is said."""
    output = Output(json)
    from wrinklefree.eval.compare import compare

    found = compare(results)
    output.table("Results side by side", found.titles(), found.cells())
    for note in found.notes:
        output.line(note)
    if out is not None:
        from wrinklefree.artifact.files import json_bytes, write_bytes
        from wrinklefree.eval.compare_pictures import draw

        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {out}: cannot be made ({error.strerror})") from error
        pictures = draw(found, out)
        write_bytes(out / "compare.md", found.markdown(pictures).encode())
        write_bytes(out / "compare.json", json_bytes(found.to_json()))
        output.line(f"written to {out}: {', '.join(['compare.md', 'compare.json', *pictures])}")
    output.finish(found.to_json())
