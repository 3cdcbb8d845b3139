"""A run as a cloud's machines would do it: its script in bash, killed, and started again on empty machines.

The files that would be sent are copied, SkyPilot's variables are set, the bucket is a directory.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "train"))
import wf_script
from recipe_toys import arguments, write_toy

from wrinklefree.cloud.describe import Described, Wish, training_job
from wrinklefree.cloud.machines import Machines
from wrinklefree.cloud.script import run_script
from wrinklefree.cloud.training import training_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


def described(toy: Path, bucket: Path, nodes: int) -> Described:
    words = [*arguments(toy, "stage2_pretrain"), "optimizer=adamw", "checkpoint.save_every=1", "budget.max_steps=4"]
    words = [word for word in words if not word.startswith("device.")]
    machines = Machines(nodes=nodes)
    run = training_run(words, machines, f"file://{bucket}", hours=1.0, utilisation=0.3)
    return training_job(Wish(machines, now=0.0, name="toy", restarts=0), run)


def machine(home: Path, what: Described, script: str, rank: int, kill: str) -> subprocess.Popen[str]:
    """Start the script on an empty machine: a home with the files that were sent, and our commands."""
    for each in what.job.inputs:
        place = home / each.place
        shutil.copytree(each.source, place)
    programs = {"wf": str(wf_script.__file__), "torchrun": "-m torch.distributed.run"}
    for name, program in programs.items():
        file = home / "wrinklefree" / "bin" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'#!/bin/bash\nexec {sys.executable} {program} "$@"\n')
        file.chmod(0o755)
    environment = {
        **os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", "KILL": kill, "CUDA_VISIBLE_DEVICES": "",
        "SKYPILOT_NUM_NODES": str(what.job.nodes), "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NODE_IPS": "\n".join(["127.0.0.1"] * what.job.nodes),
    }  # fmt: skip
    return subprocess.Popen(["bash", "-c", script], env=environment, stderr=subprocess.PIPE, text=True)


def run(homes: Path, what: Described, kill: str = "") -> list[tuple[int, str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    script = run_script(what.job).replace("--master-port 29500", f"--master-port {port}")
    started = [machine(homes / str(rank), what, script, rank, kill) for rank in range(what.job.nodes)]
    said = [each.communicate(timeout=500)[1] for each in started]
    return [(each.returncode, text) for each, text in zip(started, said, strict=True)]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_machine_that_takes_over_goes_on_from_the_bucket(nodes: int, toy: Path, tmp_path: Path) -> None:
    """To the same checkpoint as an undisturbed one, by the same script, although its home is another directory."""
    whole = described(toy, tmp_path / "undisturbed", nodes)
    assert [code for code, _ in run(tmp_path / "a", whole)] == [0] * nodes
    what = described(toy, tmp_path / "bucket", nodes)
    killed = run(tmp_path / "b", what, kill="0:3")
    assert 0 not in [code for code, _ in killed]
    done = run(tmp_path / "c", what)
    assert [code for code, _ in done] == [0] * nodes, done
    assert "Took step-00000002" in done[0][1] and "Finished: 4 steps" in done[0][1]
    (one,) = (tmp_path / "undisturbed").glob("*/checkpoint")
    (other,) = (tmp_path / "bucket").glob("*/checkpoint")
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes() or nodes > 1
    figures = [
        {line["step"]: line["loss"] for line in map(json.loads, (kept / "metrics.jsonl").read_text().splitlines())}
        for kept in (one, other)
    ]
    assert {step: figures[0][step] for step in (3, 4)} == pytest.approx(figures[1], rel=1e-6)
