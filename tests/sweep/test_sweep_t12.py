"""T12 with real training: the shipped space at toy size, through `wf sweep`, on a model from a seed.

Stage 2 begins from the very bytes that Stage 1.9 left; the figure is a number; a trial that raises is marked failed
and the study goes on.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="not checked: a sweep of real training (the extra [sweep] is missing)")
pytest.importorskip("lightning", reason="not checked: a sweep of real training (the extra [train] is missing)")

from wrinklefree.sweep.process import wf_command
from wrinklefree.sweep.space_file import find_space

pytestmark = pytest.mark.slow


def _sweep(space: str, toy: Path, out: Path, *more: str) -> dict[str, Any]:
    constants = {
        "model": toy / "model", "data": toy / "texts", "steps": 6, "length": 32, "micro_batch": 2, "accumulation": 1,
        "tracker": "none",
    }  # fmt: skip
    words = [word for name, value in constants.items() for word in ("--set", f"{name}={value}")]
    command = [*wf_command(), "sweep", space, *words, "--out", str(out), "--json", "-", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_t12_stage_1_9_is_handed_to_stage_2_and_a_trial_that_raises_does_not_end_the_study(tmp_path: Path) -> None:
    from recipe_toys import write_toy  # brings torch

    toy = write_toy(tmp_path / "toy")
    text = find_space("stage19_then_2").read_text()
    rates = {"stage1_9_lr": 0.002, "stage2_lr": 0.004}
    given = [
        {**rates, "saliency": False},
        {**rates, "saliency": True, "initial_k": 0.1, "schedule": "cosine", "ema": 0.95},
    ]
    # The first trial's Stage 2 is told to log every 0 steps, which no recipe allows.
    changed = text.replace("- log.tags=[stage2]", "- log.tags=[stage2]\n      - log.log_every={trial}")
    assert changed != text
    space = tmp_path / "space.yaml"
    space.write_text(changed + f"given: {json.dumps(given)}\n")
    result = _sweep(str(space), toy, tmp_path / "out", "--trials", "2")
    raised, whole = result["trials"]
    assert raised["state"] == "failed" and "log.log_every: found 0" in raised["error"]
    assert whole["state"] == "complete" and type(whole["figures"]["stage2.loss"]) is float
    trial = tmp_path / "out" / "trials" / "0001"
    record = json.loads((trial / "trial.json").read_text())["stages"]
    handed = record["layerwise"]["sha256"]["model.safetensors"]
    assert handed == _sha256(trial / "layerwise" / "model.safetensors")
    assert handed != record["stage2"]["sha256"]["model.safetensors"]
    assert f"source: {trial / 'layerwise'}" in (trial / "stage2" / "recipe.yaml").read_text()
    assert "saliency.memory=0.95" in record["layerwise"]["command"]
    assert result["best"] == [whole] and result["states"] == {**result["states"], "complete": 1, "failed": 1}
