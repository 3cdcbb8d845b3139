"""The scripts of a job run by a real bash against what they promise: deadlines, restarts, paths, and resuming."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from wrinklefree.cloud.job import INPUTS, RUNS, Command, Job, job_name
from wrinklefree.cloud.script import run_script, setup_script
from wrinklefree.errors import InputError

# Stands for `wf`: says how it was called, and ends as the file `ends` says, a line for each call.
STAND_IN = """#!/bin/bash
echo "$@" >> "$HOME/calls"
[ -z "$SLOW" ] || { trap 'echo ended in order >> "$HOME/calls"; exit 130' TERM; sleep 30 & wait; }
code=$(sed -n "$(wc -l < "$HOME/calls")p" "$HOME/ends" 2>/dev/null)
exit "${code:-0}"
"""


def job(*words: str, **settings: object) -> Job:
    return replace(Job("toy", (Command(("wf", *words)),)), **settings)  # type: ignore[arg-type]


def run(what: Job, home: Path, ends: str = "", **variables: str) -> tuple[int, list[str], str]:
    """Run the job's script at ``home``; return its status, how `wf` was called, and what was said."""
    wf = home / "wrinklefree" / "bin" / "wf"
    wf.parent.mkdir(parents=True, exist_ok=True)
    wf.write_text(STAND_IN)
    wf.chmod(0o755)
    (home / "ends").write_text(ends)
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], **variables}
    if what.deadline is not None:
        environment["WRINKLEFREE_DEADLINE"] = str(what.deadline)
    done = subprocess.run(
        ["bash", "-c", run_script(what)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    calls = home / "calls"
    return done.returncode, calls.read_text().splitlines() if calls.exists() else [], done.stderr


def test_words_arrive_as_they_are(tmp_path: Path) -> None:
    words = ["train", "a=it's", f"model={INPUTS}my model", "x='$(touch bad)'", "--out", f"{RUNS}toy"]
    code, calls, _ = run(job(*words), tmp_path)
    assert code == 0 and calls == [" ".join(words)] and not list(tmp_path.rglob("bad"))


@pytest.mark.parametrize(
    ("ends", "restarts", "code", "calls"),
    [("1\n1\n0\n", 2, 0, 3), ("1\n1\n", 1, 1, 2), ("2\n", 5, 2, 1), ("130\n", 5, 130, 1), ("1\n", 0, 1, 1)],
)
def test_what_failed_while_working_is_started_again(
    ends: str, restarts: int, code: int, calls: int, tmp_path: Path
) -> None:
    """Wrong input (2) and an interruption (130) are not: the same would follow."""
    found = run(job("train", restarts=restarts), tmp_path, ends)
    assert (found[0], len(found[1])) == (code, calls)


def test_the_next_command_waits_for_the_one_before(tmp_path: Path) -> None:
    both = replace(job("convert"), commands=(Command(("wf", "convert")), Command(("wf", "train"))))
    assert run(both, tmp_path / "good")[1] == ["convert", "train"]
    code, calls, _ = run(both, tmp_path / "bad", "2\n")
    assert (code, calls) == (2, ["convert"])


def test_a_command_is_ended_in_order_at_the_deadline(tmp_path: Path) -> None:
    code, calls, _ = run(job("train", deadline=int(time.time()) + 2), tmp_path, SLOW="1")
    assert (code, calls) == (124, ["train", "ended in order"])


def test_nothing_is_started_after_the_deadline(tmp_path: Path) -> None:
    """Not even by a machine that takes over: the moment was fixed when the job was launched."""
    code, calls, said = run(job("train", deadline=int(time.time()) - 1), tmp_path)
    assert (code, calls) == (124, []) and "cost cap is used up" in said


def test_packages_are_installed_with_the_extra(tmp_path: Path) -> None:
    assert "'wrinklefree[train]' s3fs" in setup_script(job("train", requirements=("s3fs",)))
    commit = "wrinklefree @ git+https://example.org/wrinklefree@abc"
    assert "'wrinklefree[train] @ git+https://example.org/wrinklefree@abc'" in setup_script(job("x", package=commit))
    wheel = tmp_path / "wrinklefree-0.1.0-py3-none-any.whl"
    wheel.touch()
    assert f"'./package/{wheel.name}[serve]'" in setup_script(job("x", package=str(wheel), extra="serve"))
    for script in (setup_script(job("x")), run_script(job("x"))):
        assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0


def test_several_machines_start_torchrun_with_their_rank(tmp_path: Path) -> None:
    """The variables that SkyPilot sets on every machine of a task; the first address is the master's."""
    torchrun = tmp_path / "wrinklefree" / "bin" / "torchrun"
    torchrun.parent.mkdir(parents=True)
    torchrun.write_text('#!/bin/bash\necho "$@" >> "$HOME/started"\n')
    torchrun.chmod(0o755)
    wide = replace(job(), commands=(Command(("wf", "train"), distributed=True),), nodes=2, accelerators=8)
    variables = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    assert run(wide, tmp_path, **variables)[0] == 0
    assert (tmp_path / "started").read_text().split() == [
        "--no-python", "--nnodes", "2", "--nproc-per-node", "8", "--node-rank", "1", "--master-addr", "10.0.0.1",
        "--master-port", "29500", "wf", "train",
    ]  # fmt: skip


def test_wrong_jobs_are_refused() -> None:
    for changes, message in (
        ({"disk_gb": 50}, "need 100 GB or more"),
        ({"name": "Ä"}, "a-z, 0-9"),
        ({"secrets": ("A",), "environment": {"A": "1"}}, "with a value and without"),
    ):
        with pytest.raises(InputError, match=message):
            job("train", **changes)
    assert job_name("Stage 1.9_x") == "stage-1-9-x" and job_name("9") == "wf-9"
