"""`wf train` in two processes, sharded or not: the checkpoint is one process's, and the death of one is told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recipe_toys import arguments, write_toy
from safetensors.torch import load_file

from wrinklefree.models.io import load_checkpoint

SCRIPT = Path(__file__).parent / "wf_script.py"
pytestmark = pytest.mark.slow


def wf(*words: str, kill: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KILL": kill}
    command = [sys.executable, str(SCRIPT), "train", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


def test_a_sharded_run_ends_in_the_checkpoint_of_a_plain_one(toy: Path, tmp_path: Path) -> None:
    """Adam divides a gradient by its own size: where both are rounding, a weight may differ by a whole rate a step."""
    base = [*arguments(toy, "stage1_9_layerwise"), "optimizer=adamw", "optimizer.lr=1e-4"]
    runs = {
        "plain": ["batch.micro_batch=2", "batch.accumulation=2"],
        "sharded": ["batch.micro_batch=1", "batch.accumulation=2", "device.devices=2", "device.strategy=fsdp"],
    }
    losses, weights = [], []
    for name, more in runs.items():
        done = wf(*base, *more, f"--out={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("Finished: 3 steps") == 1, "one process speaks"
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
        weights.append(load_file(tmp_path / name / "model.safetensors"))
        assert json.loads((tmp_path / name / "summary.json").read_text())["status"] == "COMPLETED"
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 3
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        difference = (tensor - weights[1][name]).abs()
        assert difference.max() <= 2 * 3 * 1e-4 and difference.mean() <= 1e-5, name
    model, _, info = load_checkpoint(tmp_path / "sharded")
    assert info.tokens_seen == 3 * 4 * 32 and all(torch.isfinite(p).all() for p in model.parameters())


def machines(*words: str, outs: tuple[Path, Path], kill: str = "") -> list[tuple[int, str]]:
    """Run two torchruns, each a machine to the run with one process; return how each ended and what it said."""
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KILL": kill}
    started = []
    for rank, out in enumerate(outs):
        start = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                 f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"]  # fmt: skip
        command = [*start, str(SCRIPT), "train", *words, "device.nodes=2", f"--out={out}"]
        started.append(subprocess.Popen(command, text=True, stderr=subprocess.PIPE, env=environment))
    said = [machine.communicate(timeout=400)[1] for machine in started]
    return [(machine.returncode, text) for machine, text in zip(started, said, strict=True)]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_machines_learn_what_one_process_learns(toy: Path, tmp_path: Path, strategy: str) -> None:
    """The same losses and weights, whether the machines share a directory."""
    base = [*arguments(toy, "stage1_9_layerwise"), "optimizer=adamw", "optimizer.lr=1e-4", "batch.accumulation=2"]
    one = wf(*base, "batch.micro_batch=2", f"--out={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    shared = tmp_path / "two"
    done = machines(*base, "batch.micro_batch=1", f"device.strategy={strategy}", outs=(shared, shared))
    assert [code for code, _ in done] == [0, 0], done
    assert [text.count("Finished: 3 steps") for _, text in done] == [1, 0], "one process of one machine speaks"
    assert losses(tmp_path / "one") == pytest.approx(losses(shared), rel=1e-4) and len(losses(shared)) == 3
    alone, together = (load_file(out / "model.safetensors") for out in (tmp_path / "one", shared))
    for name, tensor in alone.items():
        assert (tensor - together[name]).abs().mean() <= 1e-5, name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_machines_without_a_common_directory_resume_from_the_bucket(toy: Path, tmp_path: Path, strategy: str) -> None:
    """Both are taken away and replaced by empty ones: they go on where the newest copy was made, to the same end."""
    words = [
        *arguments(toy, "stage2_pretrain"), "optimizer=adamw", "batch.micro_batch=1", "budget.max_steps=4",
        "checkpoint.save_every=1", f"device.strategy={strategy}",
    ]  # fmt: skip
    alone = machines(*words, outs=(tmp_path / "a", tmp_path / "b"))
    assert [code for code, _ in alone] == [1, 1] and "the machines do not see each other's" in alone[0][1]
    whole = tmp_path / "whole"
    assert [code for code, _ in machines(*words, outs=(whole, whole))] == [0, 0]
    words += [f"sync.url=file://{tmp_path / 'bucket'}", "sync.mode=required"]
    killed = machines(*words, outs=(tmp_path / "c", tmp_path / "d"), kill="0:3")
    assert 0 not in [code for code, _ in killed]
    again = tmp_path / "e", tmp_path / "f"
    done = machines(*words, outs=again)
    assert [code for code, _ in done] == [0, 0], done
    assert "Took step-00000002" in done[0][1] and "Resuming after step 2" in done[0][1]
    assert losses(again[0]) == pytest.approx(losses(whole)[2:], rel=1e-6)
    (copy,) = (tmp_path / "bucket").glob("*/checkpoint")
    for name, tensor in load_file(whole / "model.safetensors").items():
        assert torch.allclose(tensor, load_file(copy / "model.safetensors")[name], atol=1e-6), name


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_killed_process_is_told_and_the_same_command_resumes(toy: Path, tmp_path: Path) -> None:
    words = [
        *arguments(toy, "stage2_pretrain"), "batch.micro_batch=1", "device.devices=2", "budget.max_steps=4",
        "checkpoint.save_every=1", f"--out={tmp_path / 'out'}",
    ]  # fmt: skip
    killed = wf(*words, kill="1:2")
    assert killed.returncode == 1, killed.stderr
    assert "wf: process 1 of this run ended unexpectedly" in killed.stderr and "Traceback" not in killed.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "FAILED" and summary["events"]["training_failed"] == 1
    resumed = wf(*words)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming after step" in resumed.stderr and "Finished: 4 steps" in resumed.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "COMPLETED"
