"""`wf launch`: the same run, a sweep's workers or a service on rented machines."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.cli.output import Output
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.cloud.describe import Described, Wish


def run(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="a recipe, as wf train takes it")
    ] = None,
    cloud: Annotated[
        str | None, typer.Option(help="aws, gcp, ... (or aws/REGION), or modal; default: where it is cheapest")
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="of each machine, such as H100:8; default: none")] = None,
    nodes: Annotated[int, typer.Option(help="machines of one training run")] = 1,
    spot: Annotated[bool, typer.Option("--spot", help="cheaper machines that may be taken away")] = False,
    bucket: Annotated[str | None, typer.Option(metavar="URL", help="where states and results are copied")] = None,
    max_dollars: Annotated[float | None, typer.Option(help="end the job in order before it costs more")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="dollars an hour for one GPU, instead of ours")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="how long it takes, instead of an estimate")] = None,
    utilisation: Annotated[float, typer.Option(help="share of a GPU's peak that training reaches; assumed")] = 0.3,
    env: Annotated[list[str] | None, typer.Option(help="NAME (of this machine's or .env's) or NAME=VALUE")] = None,
    env_file: Annotated[Path | None, typer.Option(help="default: .env, where there is one")] = None,
    disk: Annotated[int | None, typer.Option(help="GB of each machine; default: what it takes, 100 or more")] = None,
    cpus: Annotated[str | None, typer.Option(help="of each machine, such as 8+")] = None,
    memory: Annotated[str | None, typer.Option(help="GB of each machine, such as 32+")] = None,
    restarts: Annotated[int, typer.Option(min=0, help="starts after a failure, from the last state")] = 1,
    sweep: Annotated[
        Path | None, typer.Option(metavar="SPACE.yaml", help="start workers of this sweep instead")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="of the sweep, each on a machine of its own")] = 1,
    trials: Annotated[int | None, typer.Option(min=1, help="of the sweep")] = None,
    serve: Annotated[str | None, typer.Option(metavar="MODEL", help="serve a path or a bucket's URL instead")] = None,
    replicas: Annotated[str, typer.Option(help="of the service, least:most")] = "1:4",
    rate: Annotated[float, typer.Option(min=0.01, help="requests a second that one replica is to answer")] = 2.0,
    name: Annotated[str | None, typer.Option(help="of the job; default: from the recipe")] = None,
    package: Annotated[str, typer.Option(help="what pip installs there, or a wheel of this machine")] = "wrinklefree",
    sky: Annotated[Path | None, typer.Option(help="SkyPilot's command; default: on PATH")] = None,
    modal: Annotated[Path | None, typer.Option(help="Modal's command; default: on PATH")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the exact task and its cost, start nothing")] = False,
    json: Annotated[Path | None, typer.Option(help="write what was started as JSON (- is standard output)")] = None,
) -> None:
    """A run that was taken away goes on from its last state; the same command goes on with an ended one."""
    output = Output(json)
    if sum((bool(overrides), sweep is not None, serve is not None)) != 1:
        raise InputError("launch: give a recipe (training=... model=...), or --sweep SPACE.yaml, or --serve MODEL")
    from wrinklefree.cloud import describe, launch
    from wrinklefree.cloud.machines import machines

    now = time.time()
    wish = describe.Wish(
        machines(gpus, nodes, price, spot), now, name, package, disk, cpus, memory, max_dollars, restarts, env or (),
        _env_file(env_file), os.environ,
    )  # fmt: skip
    if sweep is not None:
        described = describe.sweep_job(wish, sweep, workers, trials, hours)
    elif serve is not None:
        described = describe.serving_job(wish, serve, _replicas(replicas), rate)
    else:
        described = _training(wish, overrides or [], cloud, bucket, hours, utilisation)
    provider = launch.provider_of(cloud)
    request = provider.request(described.job, cloud, now)
    if dry_run:
        output.line(provider.text(described.job, cloud, now).rstrip())
    _say(described, output)
    commands = [] if dry_run else launch.launch(described, cloud, modal if cloud == "modal" else sky, now)
    output.finish(_figures(described, cloud, request, commands))


def _training(
    wish: Wish, overrides: list[str], cloud: str | None, bucket: str | None, hours: float | None, utilisation: float
) -> Described:
    from wrinklefree.cloud.describe import training_job
    from wrinklefree.cloud.modal import VOLUME
    from wrinklefree.cloud.training import training_run

    if cloud == "modal" and bucket is None and not any(word.lstrip("+").startswith("sync.url=") for word in overrides):
        bucket = f"file://{VOLUME}"
    return training_job(wish, training_run(overrides, wish.machines, bucket, hours, utilisation))


def _env_file(given: Path | None) -> Path | None:
    usual = Path(".env")
    return given if given is not None else usual if usual.is_file() else None


def _replicas(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    if not least.isdigit() or not (most or least).isdigit():
        raise InputError(f"--replicas {text}: give the least and the most, such as 1:4")
    return int(least), int(most or least)


def _say(described: Described, output: Output) -> None:
    job, cap = described.job, described.cap
    output.line(f"estimate   {described.estimate.line()}")
    if cap is not None:
        output.line(
            f"cost cap   ${cap.dollars:,.2f}: ends {cap.seconds / 3600:,.1f} hours from now, waiting included, on "
            f"machines for at most ${cap.machine_dollars_per_hour:,.2f} an hour"
        )
    if job.secrets:
        output.line(f"variables  {', '.join(job.secrets)} (values not shown)")
    for each in job.inputs:
        output.line(f"sends      {each.source} -> ~/{each.place}")


def _figures(
    described: Described, cloud: str | None, request: dict[str, Any], commands: list[list[str]]
) -> dict[str, Any]:
    estimate, job = described.estimate, described.job
    return {
        "name": job.name,
        "cloud": cloud,
        "request": request,
        "secrets": list(job.secrets),
        "estimate": {**asdict(estimate), "dollars": estimate.dollars},
        "cap": None if described.cap is None else asdict(described.cap),
        "deadline": job.deadline,
        "started": commands,
    }
