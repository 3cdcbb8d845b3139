"""The two bash scripts of a job, the same for every provider: what is installed, and what runs.

Running it again on another machine resumes: `wf train` takes its newest state from `sync.url`.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from wrinklefree.cloud.job import Command, Job

PACKAGES = "package/"
DEADLINE = "WRINKLEFREE_DEADLINE"
_PORT = 29500
# After its SIGTERM `wf train` finishes the step and saves.
_GRACE_SECONDS = 300

_HEAD = """\
set -euo pipefail
export PATH="$HOME/wrinklefree/bin:$PATH" PYTHONUNBUFFERED=1
cd "$HOME"
"""
_LIMITED = f"""\
# Ends a command in order at the deadline that follows from the cost cap.
limited() {{
  local left=$((${{{DEADLINE}}} - $(date +%s)))
  if [ "$left" -le 0 ]; then
    echo "The deadline of this job is past: its cost cap is used up. States are kept; launch again to go on." >&2
    return 124
  fi
  timeout --signal=TERM --kill-after={_GRACE_SECONDS} "$left" "$@"
}}
"""
_RESTARTED = """\
# Starts a command again that failed while working (1): it resumes. Wrong input (2) would only fail again.
restarted() {
  local left=$1 code=0
  shift
  until "$@"; do
    code=$?
    if [ "$code" -ne 1 ] || [ "$left" -le 0 ]; then return "$code"; fi
    left=$((left - 1))
    echo "Failed while working; starting it again from its last state." >&2
  done
}
"""


def installed(job: Job, home: str = "./") -> str:
    """Return what pip is given: our requirement with the job's extra, or the file that was sent to ``home``."""
    package = f"{home}{PACKAGES}{Path(job.package).name}" if Path(job.package).is_file() else job.package
    name, at, where = package.partition(" @ ")
    return f"{name.strip()}[{job.extra}]{at}{where}"


def setup_script(job: Job) -> str:
    """Return the script that installs our package in an environment of its own below the machine's home."""
    words = shlex.join([installed(job), *job.requirements])
    return f'cd "$HOME"\npython3 -m venv wrinklefree\nwrinklefree/bin/pip install --quiet {words}\n'


def run_script(job: Job) -> str:
    """Return the script that runs the commands one after another, up to the first that fails."""
    wrappers = []
    if job.restarts and job.service is None:
        wrappers.append((_RESTARTED, f"restarted {job.restarts}"))
    if job.deadline is not None:
        wrappers.append((_LIMITED, "limited"))
    head = "".join([_HEAD, *(function for function, _ in wrappers)])
    calls = [call for _, call in wrappers]
    return head + "\n".join(" ".join([*calls, _words(command, job)]) for command in job.commands) + "\n"


def _words(command: Command, job: Job) -> str:
    words = [shlex.quote(word) for word in command.words]
    if not command.distributed or job.nodes == 1:
        return " ".join(words)  # on one machine Lightning starts the processes
    # SkyPilot's variables; the first address is that of the machine with rank 0.
    torchrun = [
        "torchrun --no-python",
        '--nnodes "$SKYPILOT_NUM_NODES"',
        f"--nproc-per-node {max(job.accelerators, 1)}",
        '--node-rank "$SKYPILOT_NODE_RANK"',
        "--master-addr \"${SKYPILOT_NODE_IPS%%$'\\n'*}\"",
        f"--master-port {_PORT}",
    ]
    return " ".join([*torchrun, *words])
