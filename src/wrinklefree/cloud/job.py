"""What is to run on rented machines, in words that every provider's module understands. Nothing here knows one.

A `Job` is our own commands with the machines they need, the files they read and the variables they get. Its scripts
(`cloud.script`) are the same wherever it runs; `PROVIDERS` turn it into a request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from wrinklefree.errors import InputError

# Commands run in the user's home, which is another directory on each cloud. Paths in their words are relative to it, so
# that the recipe, and with it the place of its states, is the same wherever a run goes on.
INPUTS = "inputs/"
RUNS = "runs/"
# Packages, the model, and a few states of it do not fit on less.
SMALLEST_DISK_GB = 100
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Input:
    """A file or directory of this machine, or a bucket's URL, that is at ``place`` (below home) when a job starts."""

    source: str
    place: str


@dataclass(frozen=True)
class Command:
    """Words of one of our commands. ``distributed``: one process per GPU is started on every machine of the job."""

    words: tuple[str, ...]
    distributed: bool = False


@dataclass(frozen=True)
class Service:
    """A job that answers on ``port`` until it is taken down, behind a balancer; ``ready``: the path that says 200."""

    port: int
    ready: str
    least: int = 1
    most: int = 4
    requests_per_second: float = 2.0


@dataclass(frozen=True)
class Job:
    """``extra``: of ours, that the commands need; ``package``: what pip installs, or a file of this machine.

    ``accelerators`` GPUs of the kind ``accelerator`` (a name of `train.gpus`) on each of ``nodes`` machines.
    ``secrets``: variables whose values are handed on and never shown; ``environment``: others, with their values.
    ``requirements``: further packages. ``dollars_per_hour``: what one machine may cost, None is any.
    ``deadline``: seconds since 1970 at which the commands are ended in order, None is never. ``restarts``: how often a
    command that failed while working is started again on the same machine. ``copies``: how many such jobs are started.
    """

    name: str
    commands: tuple[Command, ...]
    extra: str = "train"
    package: str = "wrinklefree"
    accelerator: str | None = None
    accelerators: int = 0
    nodes: int = 1
    cpus: str | None = None
    memory: str | None = None
    disk_gb: int = SMALLEST_DISK_GB
    spot: bool = False
    secrets: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    requirements: tuple[str, ...] = ()
    dollars_per_hour: float | None = None
    deadline: int | None = None
    restarts: int = 1
    copies: int = 1
    service: Service | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(f"--name {self.name}: allowed are up to 63 of a-z, 0-9 and -, a letter first")
        for what, number in (("--nodes", self.nodes), ("--workers", self.copies)):
            if number < 1:
                raise InputError(f"{what} {number}: at least 1 is needed")
        if self.disk_gb < SMALLEST_DISK_GB:
            raise InputError(
                f"--disk {self.disk_gb}: packages, a model and its states need {SMALLEST_DISK_GB} GB or more"
            )
        if both := sorted(set(self.secrets) & self.environment.keys()):
            raise InputError(f"--env: {', '.join(both)} given with a value and without; give it once")


def job_name(text: str) -> str:
    """Return ``text`` as a job may be called: small letters, digits and hyphens, at most 40, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
    return name if name[:1].isalpha() else f"wf-{name}".strip("-")
