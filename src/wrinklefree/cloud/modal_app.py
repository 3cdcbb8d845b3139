"""The app that `modal run` reads: one function that runs a job's script. Only Modal imports this file.

Machines, files and variables of the function are those of the job in the file that WRINKLEFREE_JOB names; where it is
not set (in the container, where they are decided already) they are those of an empty one.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import modal

DESCRIPTION = os.environ.get("WRINKLEFREE_JOB")
EMPTY: dict[str, Any] = {
    "name": "wrinklefree", "packages": [], "files": {}, "gpu": None, "timeout": 3600, "secrets": [], "environment": {},
    "volume": None, "mount": "/state", "cpu": None, "memory": None, "ephemeral_disk": None,
}  # fmt: skip
job: dict[str, Any] = EMPTY if DESCRIPTION is None else json.loads(Path(DESCRIPTION).read_text(encoding="utf-8"))

image = modal.Image.debian_slim(python_version="3.12")
for remote, local in job["files"].items():
    if Path(local).is_dir():
        image = image.add_local_dir(local, remote, copy=True)
    else:
        image = image.add_local_file(local, remote, copy=True)
if job["packages"]:
    image = image.pip_install(*job["packages"])
secrets = [modal.Secret.from_local_environ(job["secrets"])] if job["secrets"] else []
volumes: dict[Any, Any] = {}
if job["volume"]:
    volumes[job["mount"]] = modal.Volume.from_name(job["volume"], create_if_missing=True)

app = modal.App(job["name"])


@app.function(
    image=image,
    gpu=job["gpu"],
    cpu=job["cpu"],
    memory=job["memory"],
    ephemeral_disk=job["ephemeral_disk"],
    timeout=job["timeout"],
    secrets=secrets,
    env=job["environment"] or None,
    volumes=volumes,
)
def run(script: str) -> None:
    """Run a bash script; a status other than 0 fails the call, so that Modal shows it as failed."""
    subprocess.run(["bash", "-c", script], check=True)
