"""Resume equals uninterrupted, bit for bit; damaged states are passed over loudly; Ctrl-C saves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from train_toys import ToyStream, toy_model

from wrinklefree.errors import FormatError, InputError, TrainingError
from wrinklefree.objectives import NextToken
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.train.checkpoint import load_newest, load_state, save_state
from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Position, Schedule
from wrinklefree.train.session import LoopConfig, RunResult

SCRIPT = Path(__file__).parent / "resume_script.py"
NEVER = 10**6


def in_a_process(kill_at: int, *directories: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "20", str(kill_at), *map(str, directories)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def test_20_steps_equal_10_steps_kill_and_resume(tmp_path: Path) -> None:
    killed = in_a_process(10, tmp_path / "killed")
    assert killed.returncode == -signal.SIGKILL and killed.stdout == ""
    done = in_a_process(NEVER, tmp_path / "killed", tmp_path / "straight")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Resuming after step 10 (960 tokens)") == 1
    resumed, straight = done.stdout.splitlines()
    assert resumed == straight
    assert straight.split()[1:4] == ["20", "1920", "80"]


def state_of(step: int) -> dict[str, object]:
    tensor = torch.arange(6.0).view(2, 3)
    return {
        "step": step, "nested": {1: [tensor, tensor.t(), (True, None)], "half": torch.ones(2, dtype=torch.bfloat16)},
        "float": 0.1 + 0.2, "infinite": float("inf"), "empty": torch.zeros(0),
    }  # fmt: skip


def test_a_state_comes_back_exactly_and_the_oldest_go(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_state(tmp_path, step, state_of(step), keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
    state = load_state(tmp_path / "step-00000015")
    expected = state_of(15)
    nested, wanted = state["nested"], expected["nested"]
    assert nested.keys() == wanted.keys() and state["step"] == 15  # type: ignore[union-attr]
    assert torch.equal(nested[1][0], wanted[1][0]) and torch.equal(nested[1][1], wanted[1][1])  # type: ignore[index]
    assert nested[1][2] == (True, None) and nested["half"].dtype == torch.bfloat16
    assert (state["float"], state["infinite"], state["empty"].numel()) == (0.1 + 0.2, float("inf"), 0)


def test_what_was_loaded_does_not_follow_the_file(tmp_path: Path) -> None:
    """safetensors returns views of the file, which would change with it."""
    path = save_state(tmp_path, 1, {"a": torch.ones(5000)})
    state = load_state(path)
    file = path / "tensors.safetensors"
    with file.open("r+b") as raw:
        raw.seek(-4000 * 4, 2)
        raw.write(bytes(4000 * 4))
    assert state["a"].sum() == 5000


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "manifest"])
def test_a_damaged_newest_state_is_passed_over_loudly(tmp_path: Path, damage: str) -> None:
    for step in (5, 10):
        save_state(tmp_path, step, state_of(step))
    newest = tmp_path / "step-00000010"
    tensors = newest / "tensors.safetensors"
    if damage == "flip":
        data = bytearray(tensors.read_bytes())
        data[-3] ^= 1
        tensors.write_bytes(data)
    elif damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-7])
    elif damage == "missing":
        tensors.unlink()
    else:
        (newest / "manifest.json").write_text("[")
    said: list[str] = []
    state = load_newest(tmp_path, said.append)
    assert state is not None and state["step"] == 5
    assert len(said) == 1 and said[0].startswith("WARNING") and "step-00000010" in said[0]
    with pytest.raises(FormatError):
        load_state(newest)


def test_a_crash_while_writing_leaves_no_half_state(tmp_path: Path) -> None:
    save_state(tmp_path, 5, state_of(5))
    with pytest.raises(TypeError, match="training state bad: object cannot be stored"):
        save_state(tmp_path, 10, {**state_of(10), "bad": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert load_newest(tmp_path / "nothing", print) is None


def short_run(directory: Path, steps: int, identity: str = "a", interrupt_at: int | None = None) -> RunResult:
    student = toy_model(1)

    def watch(position: Position, figures: Mapping[str, float]) -> None:
        if position.step == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)

    return run(
        student, ToyStream(), torch.optim.AdamW(student.parameters(), lr=1e-3),
        ObjectiveManager({"next_token": Term(NextToken())}), config=LoopConfig(
            micro_batch=4, state_dir=directory, identity=identity), budget=Budget(tokens=steps * 96),
        schedule=Schedule("constant", warmup_ratio=0.0), on_step=watch,
    )  # fmt: skip


def test_ctrl_c_saves_says_so_and_the_next_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted = short_run(tmp_path, 6, interrupt_at=3)
    assert interrupted.stopped == "interrupted" and interrupted.position.step == 3
    said = capsys.readouterr().err
    assert "Interrupted after step 3" in said and "the same command resumes" in said
    resumed = short_run(tmp_path, 6)
    assert resumed.stopped == "budget" and resumed.position.step == 6
    assert "Resuming after step 3 (288 tokens)" in capsys.readouterr().err
    again = short_run(tmp_path, 6)  # nothing left to do
    assert again.position.step == 6


def test_another_recipes_state_is_refused(tmp_path: Path) -> None:
    short_run(tmp_path, 2)
    with pytest.raises(InputError, match="another recipe; choose another output directory"):
        short_run(tmp_path, 2, identity="b")


def test_a_full_disk_stops_the_run_and_leaves_the_state_before(tmp_path: Path) -> None:
    """The file-size limit answers as a full disk does. Writing fails from step 3 on; the state of step 2 remains."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def go(directory: Path, full: bool) -> RunResult:
        student = toy_model(1)

        def watch(position: Position, figures: Mapping[str, float]) -> None:
            if full and position.step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

        return run(
            student, ToyStream(), torch.optim.AdamW(student.parameters(), lr=1e-3),
            ObjectiveManager({"next_token": Term(NextToken())}),
            config=LoopConfig(micro_batch=4, state_dir=directory, save_every=2), budget=Budget(tokens=6 * 96),
            schedule=Schedule("constant", warmup_ratio=0.0), on_step=watch,
        )  # fmt: skip

    try:
        with pytest.raises(TrainingError, match=r"step 4 could not be saved, so training stops.*step-00000002 is"):
            go(tmp_path / "a", full=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["step-00000002"]
    resumed, straight = go(tmp_path / "a", full=False), go(tmp_path / "b", full=False)
    assert resumed.figures["loss"] == straight.figures["loss"] and resumed.position.step == 6


def test_what_a_killed_save_left_goes_away_and_the_final_state_is_kept(tmp_path: Path) -> None:
    left = tmp_path / ".step-00000001.partial"
    left.mkdir()
    (left / "tensors.safetensors").write_bytes(b"half")
    short_run(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_states_of_the_format_before_are_read(tmp_path: Path) -> None:
    path = save_state(tmp_path, 5, state_of(5))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 1}))
    assert load_state(path)["step"] == 5
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 3}))
    with pytest.raises(FormatError, match="format_version 3, this release reads 2"):
        load_state(path)
