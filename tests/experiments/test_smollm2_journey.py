"""All stages of experiments/smollm2-135m that make something, on a toy teacher; stopped by its time, and going on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from smollm2_teacher import write_teacher
from smollm2_toys import HERE

STAGES = (
    "documentation,reviews,addresses,unseen,questions,chats,continuations,corpus,calibrated-group,calibrated-row,"
    "layerwise,distilled,distilled-again,blocks,packed"
)


@pytest.mark.slow
def test_the_smoke_scale_makes_every_model_and_goes_on_after_its_time(tmp_path: Path) -> None:
    toy, work = write_teacher(tmp_path / "toy"), tmp_path / "work"
    (work / "done").mkdir(parents=True)
    shutil.copy(toy / "reviews.jsonl", work)  # what the package's reviews would become
    (work / "done" / "reviews").touch()
    command = [sys.executable, str(HERE / "run.py"), str(work), "--model", str(toy / "teacher"), "--scale", "smoke"]
    for kind in ("documentation", "addresses", "novel"):
        command += [f"--{kind}", str(toy / f"{kind}.jsonl")]
    command += ["--stages", STAGES]
    assert subprocess.run([*command, "--minutes", "0.2"], timeout=600).returncode == 75
    assert (work / "done" / "unseen").exists() and not (work / "done" / "packed").exists()
    assert subprocess.run([*command, "--minutes", "30"], timeout=1800).returncode == 0
    tokens = json.loads((work / "corpus" / "tokens.json").read_text(encoding="utf-8"))
    for kind in ("chat", "continuation", "docs", "reviews", "addresses"):
        assert tokens[f"train-{kind}"]["tokens"] > 100 and tokens[f"held-{kind}"]["documents"] == 2
    assert {"held-novel", "held-code"} < set(tokens) and not {"train-novel", "train-code"} & set(tokens)
    for name in ("calibrated-row", "calibrated-group", "distilled", "distilled-again", "blocks"):
        assert (work / f"packed-{name}" / "model.safetensors").exists(), sorted((work / f"packed-{name}").iterdir())
