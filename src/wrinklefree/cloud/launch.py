"""Starting a job with a provider's own command, or showing exactly what would be started."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrinklefree.cloud import modal, skypilot
from wrinklefree.cloud.describe import Described
from wrinklefree.cloud.job import Job


class LaunchError(RuntimeError):
    """A provider's command failed; it has said why."""


@dataclass(frozen=True)
class Provider:
    """``request``: what is asked for, as plain values; ``text``: the same for a reader, and to run by hand.

    ``commands``: what starts it, given the path of the provider's command and of the request's file, whose name is
    ``file``; ``variable``: in which the command finds that path, if it is not an argument.
    """

    executable: Callable[[Path | None], str]
    request: Callable[[Job, str | None, float], dict[str, Any]]
    text: Callable[[Job, str | None, float], str]
    contents: Callable[[Job, str | None, float], str]
    commands: Callable[[Job, str, str], list[list[str]]]
    file: str
    variable: str | None = None


_SKYPILOT = Provider(
    executable=skypilot.executable,
    request=lambda job, cloud, now: skypilot.task(job, cloud),
    text=lambda job, cloud, now: skypilot.task_yaml(job, cloud),
    contents=lambda job, cloud, now: skypilot.task_yaml(job, cloud),
    commands=skypilot.commands,
    file="task.yaml",
)
PROVIDERS = {
    "modal": Provider(
        executable=modal.executable,
        request=lambda job, cloud, now: modal.function(job, now),
        text=lambda job, cloud, now: modal.shown(job, now),
        contents=lambda job, cloud, now: json.dumps(modal.function(job, now)),
        commands=lambda job, tool, file: [modal.command(job, tool)],
        file="job.json",
        variable=modal.JOB,
    )
}
"""Clouds that are not reached through SkyPilot."""


def provider_of(cloud: str | None) -> Provider:
    """Return who starts jobs on a cloud; None is any that SkyPilot finds."""
    return PROVIDERS.get(cloud or "", _SKYPILOT)


def launch(described: Described, cloud: str | None, tool: Path | None, now: float) -> list[list[str]]:
    """Start the job and return the commands that did; they speak for themselves.

    Secrets are in the children's environment alone: neither in a file nor among the words that `ps` shows.

    Raises: MissingDependencyError without the provider's command, LaunchError when it fails.
    """
    provider = provider_of(cloud)
    found = provider.executable(tool)
    with tempfile.TemporaryDirectory(prefix="wf-launch-") as directory:
        file = Path(directory) / provider.file
        file.write_text(provider.contents(described.job, cloud, now), encoding="utf-8")
        environment = {**os.environ, **described.variables.secret}
        if provider.variable is not None:
            environment[provider.variable] = str(file)
        commands = provider.commands(described.job, found, str(file))
        for number, command in enumerate(commands):
            code = subprocess.run(command, env=environment, check=False).returncode
            if code:
                started = f"; {number} of {len(commands)} jobs are started already" if number else ""
                raise LaunchError(f"{Path(found).name} ended with {code}, for the reason it gave above{started}")
    return commands
