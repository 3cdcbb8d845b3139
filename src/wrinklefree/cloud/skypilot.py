"""A job as SkyPilot's task, and the command that starts it: a managed job, or a service behind SkyServe's balancer.

SkyPilot is never imported: its own command `sky` is called, from whatever environment it is installed in.
Fields: https://docs.skypilot.co/en/latest/reference/yaml-spec.html, checked with SkyPilot 0.14.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wrinklefree.cloud.executable import find_executable
from wrinklefree.cloud.job import Job
from wrinklefree.cloud.script import DEADLINE, PACKAGES, run_script, setup_script
from wrinklefree.errors import unknown_name

# Of SkyPilot 0.14.1; behind a name may stand /region and /zone.
CLOUDS = (
    "aws", "azure", "gcp", "ibm", "lambda", "scp", "oci", "kubernetes", "k8s", "runpod", "vast", "vsphere", "cudo",
    "fluidstack", "paperspace", "primeintellect", "do", "nebius", "ssh", "slurm", "hyperbolic", "seeweb", "shadeform",
    "yotta", "mithril", "verda",
)  # fmt: skip
# Where SkyPilot's catalogue calls a GPU otherwise than `train.gpus` does.
_GPU_NAMES = {"A100-40GB": "A100", "H100-PCIe": "H100", "RTXPRO6000": "RTXPRO6000S"}


def task(job: Job, cloud: str | None = None) -> dict[str, Any]:
    """Return the task, as its YAML file would be read.

    Raises: InputError for a cloud that SkyPilot does not know.
    """
    if cloud is not None and cloud.split("/")[0].lower() not in CLOUDS:
        raise unknown_name("cloud", cloud, [*CLOUDS, "modal"])
    environment = dict(job.environment)
    if job.deadline is not None:
        environment[DEADLINE] = str(job.deadline)
    mounts = {f"~/{each.place}": _source(each.source) for each in job.inputs}
    if Path(job.package).is_file():
        mounts[f"~/{PACKAGES}{Path(job.package).name}"] = str(Path(job.package).resolve())
    return {
        "name": job.name,
        **_if_any(service=_service(job)),
        "resources": _resources(job, cloud),
        **({"num_nodes": job.nodes} if job.nodes > 1 else {}),
        **_if_any(envs=environment, secrets=dict.fromkeys(job.secrets), file_mounts=mounts),
        "setup": setup_script(job),
        "run": run_script(job),
    }


def task_yaml(job: Job, cloud: str | None = None) -> str:
    """Return the task's file."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Scripts as blocks, everything else as usual."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return str(yaml.dump(task(job, cloud), Dumper=Dumper, sort_keys=False, width=120))


def commands(job: Job, sky: str, file: str) -> list[list[str]]:
    """Return the commands that start the job from its file; values of secrets come from their environment."""
    secrets = [word for name in job.secrets for word in ("--secret", name)]
    if job.service is not None:
        return [[sky, "serve", "up", "--yes", "--service-name", job.name, *secrets, file]]
    names = [job.name] if job.copies == 1 else [f"{job.name}-{number}" for number in range(job.copies)]
    return [[sky, "jobs", "launch", "--yes", "--detach-run", "--name", name, *secrets, file] for name in names]


def executable(given: Path | None) -> str:
    """Return the path of SkyPilot's command. Raises: MissingDependencyError when there is none."""
    return find_executable(
        "sky",
        given,
        "sky, SkyPilot's command, is not on PATH; install it in an environment of its own (python3 -m venv ~/sky "
        "&& ~/sky/bin/pip install 'skypilot[aws]>=0.14,<0.15') and give --sky ~/sky/bin/sky. --dry-run needs none",
    )


def _resources(job: Job, cloud: str | None) -> dict[str, Any]:
    resources: dict[str, Any] = {} if cloud is None else {"infra": cloud}
    if job.accelerator is not None:
        resources["accelerators"] = f"{_GPU_NAMES.get(job.accelerator, job.accelerator)}:{job.accelerators}"
    resources |= _if_any(cpus=job.cpus, memory=job.memory)
    resources["disk_size"] = job.disk_gb
    if job.spot:
        resources["use_spot"] = True
    if job.dollars_per_hour is not None:
        resources["max_hourly_cost"] = round(job.dollars_per_hour, 4)
    if job.service is not None:
        resources["ports"] = job.service.port
    return resources


def _service(job: Job) -> dict[str, Any] | None:
    service = job.service
    if service is None:
        return None
    return {
        # A model is fetched and loaded before the first answer.
        "readiness_probe": {"path": service.ready, "initial_delay_seconds": 600, "timeout_seconds": 10},
        "replica_policy": {
            "min_replicas": service.least,
            "max_replicas": service.most,
            "target_qps_per_replica": service.requests_per_second,
            "upscale_delay_seconds": 120,
            "downscale_delay_seconds": 600,
        },
    }


def _source(source: str) -> str | dict[str, str]:
    return {"source": source, "mode": "COPY"} if "://" in source else str(Path(source).resolve())


def _if_any(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}
