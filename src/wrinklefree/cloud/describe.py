"""From what a user asked for to a job: a training run, the workers of a sweep, or a service."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wrinklefree.cloud.cost import Cap, Estimate, cap
from wrinklefree.cloud.environment import WELCOME, Variables, collect
from wrinklefree.cloud.job import INPUTS, RUNS, SMALLEST_DISK_GB, Command, Input, Job, Service, job_name
from wrinklefree.cloud.machines import Machines
from wrinklefree.cloud.training import TrainingRun
from wrinklefree.errors import InputError

STORAGE = "WF_SWEEP_STORAGE"
API_KEY = "WRINKLEFREE_API_KEY"
_PORT = 8000


@dataclass(frozen=True)
class Wish:
    """What all kinds of jobs have in common. ``asked`` and ``env_file``: see `environment.collect`.

    ``process``: the variables of this process; ``now``: seconds since 1970, from which a deadline counts.
    """

    machines: Machines
    now: float
    name: str | None = None
    package: str = "wrinklefree"
    disk_gb: int | None = None
    cpus: str | None = None
    memory: str | None = None
    max_dollars: float | None = None
    restarts: int = 1
    asked: Sequence[str] = ()
    env_file: Path | None = None
    process: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Described:
    """A job, the values of its secrets (for the child's environment alone), and what it may cost."""

    job: Job
    variables: Variables
    estimate: Estimate
    cap: Cap | None


def training_job(wish: Wish, run: TrainingRun) -> Described:
    """Return the job of a training run."""
    name = wish.name or job_name(f"{run.recipe.stage}-{run.recipe.identity[:6]}")
    words = ("wf", "train", *run.words, "--out", f"{RUNS}{name}")
    return _described(
        wish, name, Command(words, distributed=True), run.estimate, wish.machines.nodes, run.needed,
        (*WELCOME, *run.welcome), extra="train", inputs=run.inputs, requirements=run.requirements,
        nodes=wish.machines.nodes, least_disk_gb=run.disk_gb,
    )  # fmt: skip


def sweep_job(wish: Wish, space: Path, workers: int, trials: int | None, hours: float | None) -> Described:
    """Return ``workers`` jobs, each one worker of the sweep of a space file; they share the database.

    Raises: InputError when the workers would not find each other.
    """
    if not space.is_file():
        raise InputError(f"--sweep {space}: there is no such file")
    if wish.machines.nodes > 1:
        raise InputError("--nodes: a sweep has --workers, each on a machine of its own")
    name = wish.name or job_name(f"sweep-{space.stem}")
    words = ["wf", "sweep", f"{INPUTS}{space.name}", "--out", f"{RUNS}{name}"]
    words += [] if trials is None else ["--trials", str(trials)]
    price = wish.machines.dollars_per_hour
    estimate = Estimate(
        None if hours is None else hours * 3600.0,
        None if price is None else price * workers,
        "the length of a sweep is not estimated" if hours is None else "hours given",
    )
    described = _described(
        wish, name, Command(tuple(words)), estimate, workers, {STORAGE: "the database that all workers share"}, WELCOME,
        extra="train,sweep", inputs=(Input(str(space.resolve()), f"{INPUTS}{space.name}"),),
        requirements=("psycopg[binary]",), copies=workers,
    )  # fmt: skip
    if described.variables.secret.get(STORAGE, described.variables.given.get(STORAGE, "")).startswith("sqlite"):
        raise InputError(
            f"{STORAGE}: SQLite is a file of one machine; workers elsewhere need a server, postgresql://..."
        )
    return described


def serving_job(wish: Wish, model: str, replicas: tuple[int, int], requests_per_second: float) -> Described:
    """Return the job that serves ``model`` (a path here or a bucket's URL) by between two numbers of replicas.

    Raises: InputError when the model is nowhere, or a cap is wanted: a service runs until it is taken down.
    """
    least, most = replicas
    if not 0 <= least <= most or most < 1:
        raise InputError(f"--replicas {least}:{most}: give the least and the most, such as 1:4")
    if wish.max_dollars is not None:
        raise InputError("--max-dollars: a service runs until it is taken down (sky serve down); --replicas limits it")
    if "://" not in model and not Path(model).exists():
        raise InputError(f"--serve {model}: no such model; give a packed directory, a GGUF file, or a bucket's URL")
    name = wish.name or "llm"
    remote = "://" in model
    place = f"{INPUTS}model" if remote else f"{INPUTS}model/{Path(model).resolve().name}"
    words = ["wf", "serve", place, "--host", "0.0.0.0", "--port", str(_PORT), "--name", "model", "--slots", "8"]
    service = Service(_PORT, "/health/ready", least, most, requests_per_second)
    price = wish.machines.dollars_per_hour
    estimate = Estimate(None, None if price is None else price * most, f"up to {most} replicas, until taken down")
    return _described(
        wish, name, Command((*words, "--drain-seconds", "30")), estimate, most, {API_KEY: "whoever has it may ask"}, (),
        extra="serve", inputs=(Input(model if remote else str(Path(model).resolve()), place),), service=service,
        memory_without_gpu="16+",
    )  # fmt: skip


def _described(
    wish: Wish,
    name: str,
    command: Command,
    estimate: Estimate,
    count: int,
    needed: Mapping[str, str],
    welcome: Sequence[str],
    memory_without_gpu: str = "32+",
    least_disk_gb: int = SMALLEST_DISK_GB,
    **more: Any,
) -> Described:
    """``count``: machines of the job and its copies together.

    Raises: InputError for a smaller disk than the job takes.
    """
    if wish.disk_gb is not None and wish.disk_gb < least_disk_gb:
        raise InputError(f"--disk {wish.disk_gb}: the job takes {least_disk_gb} GB; give as much, or leave it to us")
    machines = wish.machines
    limit = cap(estimate, wish.max_dollars, count)
    variables = collect(wish.asked, needed, wish.env_file, wish.process, welcome)
    without = machines.gpu is None
    job = Job(
        name=name,
        commands=(command,),
        package=wish.package,
        accelerator=machines.gpu,
        accelerators=machines.count,
        cpus=wish.cpus or ("8+" if without else None),
        memory=wish.memory or (memory_without_gpu if without else None),
        disk_gb=wish.disk_gb or max(least_disk_gb, SMALLEST_DISK_GB),
        spot=machines.spot,
        secrets=tuple(variables.secret),
        environment=variables.given,
        dollars_per_hour=None if limit is None else limit.machine_dollars_per_hour,
        deadline=None if limit is None else math.floor(wish.now + limit.seconds),
        restarts=wish.restarts,
        **more,
    )
    return Described(job, variables, estimate, limit)
