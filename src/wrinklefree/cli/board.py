"""`wf board`: the figures of training runs on a page, while they run."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

import typer

from wrinklefree.cli.output import Output


def run(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="directories of training runs, or of several")],
    host: Annotated[str, typer.Option(help="address to listen on; whoever reaches it sees the figures")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8001,
) -> None:
    """Curves of loss, objectives, lambda, learning rate, zeros and speed; runs lie over each other. Ctrl-C ends it."""
    from wrinklefree.server.board.app import serve_board
    from wrinklefree.server.board.runs import find_runs
    from wrinklefree.server.run import bind, url_of

    output = Output(None)
    found = find_runs(runs)
    bound = bind(host, port)
    bound.listen()  # whoever reads the address may use it at once
    count = "1 run" if len(found) == 1 else f"{len(found)} runs"
    output.line(f"{count} ({', '.join(run.name for run in found)}) on {url_of(bound)}/ ; Ctrl-C ends it")
    serve_board(bound, found, ipaddress.ip_address(bound.getsockname()[0].split("%")[0]).is_loopback)
