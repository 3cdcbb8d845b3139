"""A student whose rows two processes share learns what one process learns, and its states open anywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sharded_script
import torch
from safetensors.torch import load_file
from torch import Tensor

from wrinklefree.errors import InputError
from wrinklefree.train.checkpoint import Stored, load_state
from wrinklefree.train.parallel import build_fabric
from wrinklefree.train.recipe import DeviceRecipe

SCRIPT = Path(sharded_script.__file__)
STEPS, TOKENS = 4, sharded_script.GLOBAL_BATCH * 24
# float32 sums of the same TOKENS terms in another order: each differs by at most TOKENS roundings of its terms.
RELATIVE = TOKENS * 2.0**-23
# And so, step by step, the weights: the rate times what the clipped gradient may differ by, and the weight's rounding.
ABSOLUTE = STEPS * (sharded_script.LR * sharded_script.CLIP * RELATIVE + 2.0**-24)


def start(**settings: Any) -> subprocess.CompletedProcess[str]:
    """Run the script; this returns only when every process that it started has ended."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), json.dumps(settings)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)


def in_processes(**settings: Any) -> dict[str, Any]:
    done = start(**settings)
    assert done.returncode == 0, done.stderr
    return read(Path(settings["out"]))


def here(**settings: Any) -> dict[str, Any]:
    sharded_script.main(**settings)
    return read(Path(settings["out"]))


def read(out: Path) -> dict[str, Any]:
    ranks = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    assert all(rank == ranks[0] for rank in ranks)
    return {**ranks[0], "weights": load_file(out / "weights.safetensors")}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def nearly(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert (a["step"], a["tokens"]) == (b["step"], b["tokens"])
    for (loss, norm), (other, other_norm) in zip(a["seen"], b["seen"][-len(a["seen"]) :], strict=True):
        assert loss == pytest.approx(other, rel=RELATIVE) and norm == pytest.approx(other_norm, rel=RELATIVE)
    for name, weight in a["weights"].items():
        assert (weight - b["weights"][name]).abs().max() <= ABSOLUTE * max(1.0, float(weight.abs().max())), name


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Four steps in this process, with the state after the second."""
    out = tmp_path_factory.mktemp("one")
    done = here(processes=1, out=str(out / "o"), state=str(out / "state"), save_every=2, steps=STEPS, micro_batch=4)
    return {**done, "state": out / "state"}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same in two processes that share the rows, with SubLN and gradient checkpointing."""
    out = tmp_path_factory.mktemp("two")
    settings = {"processes": 2, "state": str(out / "state"), "save_every": 2, "steps": STEPS, "checkpointing": True}
    return {**in_processes(out=str(out / "o"), **settings), "state": out / "state"}


def state_after_two(run: dict[str, Any], where: Path) -> str:
    shutil.copytree(run["state"] / "step-00000002", where / "step-00000002")
    return str(where)


@pytest.mark.slow
def test_t10_subln_checkpointing_clip_and_save_in_two_processes(one: dict[str, Any], two: dict[str, Any]) -> None:
    """No dtype error and no hang, the norm is the single process's, and the state opens in one process, bit for bit."""
    nearly(two, one)
    assert all(norm > sharded_script.CLIP for _, norm in two["seen"]) and two["figures"]["clipped"] == STEPS
    assert two["figures"]["ternary/zeros"] == one["figures"]["ternary/zeros"]
    last = two["state"] / f"step-{STEPS:08d}"
    assert {p.name for p in last.iterdir()} == {
        "manifest.json", "state.json", "tensors-00001-of-00002.safetensors", "tensors-00002-of-00002.safetensors"
    }  # fmt: skip
    stored = load_state(last)["student"]
    assert torch.equal(stored.pop("lm_head.weight"), stored["model.embed_tokens.weight"])
    assert same_bits(stored, two["weights"])
    sizes = [(last / f"tensors-0000{i}-of-00002.safetensors").stat().st_size for i in (1, 2)]
    assert sizes[1] > 0.9 * sizes[0]  # the rows are divided, not repeated


@pytest.mark.slow
def test_a_state_resumes_on_another_number_of_processes(
    one: dict[str, Any], two: dict[str, Any], tmp_path: Path
) -> None:
    fewer = here(processes=1, out=str(tmp_path / "a"), state=state_after_two(two, tmp_path / "1"), steps=STEPS)
    assert len(fewer["seen"]) == STEPS - 2
    nearly(fewer, one)
    more = in_processes(processes=2, out=str(tmp_path / "b"), state=state_after_two(one, tmp_path / "2"), steps=STEPS)
    assert len(more["seen"]) == STEPS - 2
    nearly(more, one)


@pytest.mark.slow
def test_resuming_on_as_many_processes_is_exact_with_moments_and_learned_scales(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"processes": 2, "optimizer": "adamw", "learned_scales": True, "micro_batch": 1}
    straight = in_processes(
        out=str(tmp_path / "a"), state=str(tmp_path / "straight"), save_every=2, steps=STEPS, **settings
    )
    again = state_after_two({"state": tmp_path / "straight"}, tmp_path / "again")
    resumed = in_processes(out=str(tmp_path / "b"), state=again, steps=STEPS, **settings)
    assert same_bits(resumed["weights"], straight["weights"])
    assert resumed["seen"] == straight["seen"][2:]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "victim"), [("ddp", 1), ("fsdp", 0)])
def test_killing_one_process_ends_the_other_and_the_state_resumes(strategy: str, victim: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"processes": 2, "strategy": strategy, "steps": STEPS, "subln": "none"}
    paths = {"out": str(tmp_path / "o"), "state": str(tmp_path / "state")}
    began = time.monotonic()
    killed = start(**settings, **paths, save_every=2, kill=[victim, 3])
    assert killed.returncode == (1 if victim else -signal.SIGKILL), killed.stderr
    assert f"TrainingError: process {victim} of this run ended unexpectedly" in killed.stderr
    assert "the same command resumes from it" in killed.stderr and time.monotonic() - began < 200
    resumed = in_processes(**settings, **paths)
    assert len(resumed["seen"]) == 2 and resumed["step"] == STEPS
    straight = here(processes=1, out=str(tmp_path / "p"), steps=STEPS, micro_batch=4, subln="none")
    nearly(resumed, straight)


def test_rows_of_a_stored_tensor_are_found_over_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    whole = torch.arange(14.0).view(7, 2)
    files = []
    for i, rows in enumerate((whole[:3], whole[3:3], whole[3:])):
        files.append(tmp_path / f"{i}.safetensors")
        save_file({"x": rows.contiguous()}, files[-1])
    stored = Stored("x", tuple(files))
    assert stored.shape() == (7, 2) and torch.equal(stored.read(), whole)
    for first in range(8):
        for last in range(first, 8):
            assert torch.equal(stored._between(first, last), whole[first:last])


def test_several_dtypes_are_refused_when_sharding() -> None:
    from torch import nn

    from wrinklefree.train.parallel import StudentModule, _shard

    model = nn.Module()
    model.a, model.b = nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"several dtypes, torch.float32 .*precision=bf16-mixed"):
        _shard(StudentModule(model), None)


def test_one_process_is_never_sharded() -> None:
    fabric = build_fabric(DeviceRecipe("cpu", 1, "fsdp"))
    assert type(fabric.strategy).__name__ == "SingleDeviceStrategy"
