"""A job as what `modal run` is given: the second provider behind the same description.

Modal starts a function again by itself when its machine is taken away, and a volume of its own keeps the states.
Its command is called; the file it reads is `cloud.modal_app`. Checked with modal 1.6.4.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from wrinklefree.cloud.executable import find_executable
from wrinklefree.cloud.job import Job
from wrinklefree.cloud.script import DEADLINE, PACKAGES, installed, run_script
from wrinklefree.errors import InputError

APP = Path(__file__).with_name("modal_app.py")
JOB = "WRINKLEFREE_JOB"
VOLUME = "/state"
# Home of the commands in the container, whoever its user is.
_HOME = "/job/"
_LONGEST_SECONDS = 24 * 3600
# Less cannot be asked for, and what a container has without asking is as much.
_DISK_MIB = 524_288
_GPU_NAMES = {"H100-PCIe": "H100", "A10G": "A10"}
GPUS = ("L4", "A10G", "A100-40GB", "A100-80GB", "L40S", "H100", "H200", "B200")


def function(job: Job, now: float) -> dict[str, Any]:
    """Return the settings of the function that runs the job, as `cloud.modal_app` reads them. ``now``: since 1970.

    Raises: InputError for what Modal's functions are not: several machines, services, spot prices, buckets as inputs.
    """
    refused = {
        f"--nodes {job.nodes}": (job.nodes > 1, "one function runs on one machine"),
        f"--workers {job.copies}": (job.copies > 1, "start the command once for each worker"),
        "--serve": (job.service is not None, "Modal has its own web endpoints; take SkyPilot for a service"),
        "--spot": (job.spot, "Modal has one price, and starts a job again whose machine was taken away"),
        f"--gpus {job.accelerator}": (
            job.accelerator is not None and job.accelerator not in GPUS,
            f"Modal has {', '.join(GPUS)}",
        ),
    }
    for option, (wrong, why) in refused.items():
        if wrong:
            raise InputError(f"{option}: not with --cloud modal; {why}")
    if remote := [each.source for each in job.inputs if "://" in each.source]:
        raise InputError(f"{remote[0]}: a bucket cannot be an input with --cloud modal; copy it to this machine")
    files = {f"{_HOME}{each.place}": each.source for each in job.inputs}
    if Path(job.package).is_file():
        files[f"{_HOME}{PACKAGES}{Path(job.package).name}"] = str(Path(job.package).resolve())
    left = _LONGEST_SECONDS if job.deadline is None else int(job.deadline - now)
    return {
        "name": job.name,
        "packages": [installed(job, _HOME), *job.requirements],
        "files": files,
        "gpu": job.accelerator and f"{_GPU_NAMES.get(job.accelerator, job.accelerator)}:{job.accelerators}",
        "timeout": max(1, min(left, _LONGEST_SECONDS)),
        "secrets": list(job.secrets),
        "environment": {
            **job.environment,
            **({} if job.deadline is None else {DEADLINE: str(job.deadline)}),
        },
        "volume": f"{job.name}-state",
        "mount": VOLUME,
        "cpu": None if job.cpus is None else float(job.cpus.rstrip("+")),
        "memory": None if job.memory is None else int(float(job.memory.rstrip("+")) * 1024),
        "ephemeral_disk": job.disk_gb * 1000**3 // 2**20 if job.disk_gb * 1000**3 // 2**20 > _DISK_MIB else None,
    }


def command(job: Job, modal: str) -> list[str]:
    """Return the command that starts the job; it goes on when this machine is switched off."""
    script = f'export HOME={_HOME}\nmkdir -p "$HOME"\n{run_script(job)}'
    return [modal, "run", "--detach", f"{APP}::run", "--script", script]


def executable(given: Path | None) -> str:
    """Return the path of Modal's command. Raises: MissingDependencyError when there is none."""
    return find_executable(
        "modal",
        given,
        "modal, the command of that cloud, is not on PATH; install it with: pip install modal (and modal setup), "
        "or give --modal PATH. --dry-run needs none",
    )


def shown(job: Job, now: float) -> str:
    """Return settings and script for a reader."""
    settings = "".join(f"{name}: {value!r}\n" for name, value in function(job, now).items())
    *words, script = command(job, "modal")
    return f"{settings}\n{shlex.join(words)} \\\n'{script}'\n"
