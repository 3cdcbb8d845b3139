"""Write what `wf launch --dry-run` would send, in our own environment: DIRECTORY/NAME.yaml and NAME.json."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "train"))
from train_toys import toy_model

from wrinklefree.cli.main import main
from wrinklefree.cloud.skypilot import CLOUDS

TRAIN = ["training=stage2_pretrain", "data=fineweb", "--gpus"]
BUCKET = ["--bucket", "s3://bucket/runs"]
REQUESTS = {
    "one": [*TRAIN, "H100", "--cloud", "gcp", *BUCKET],
    "spot": [*TRAIN, "A100-40GB:4", "--spot", *BUCKET, "--max-dollars", "500", "--env", "SHOWN=1"],
    "machines": [*TRAIN, "H100:8", "--nodes", "2", *BUCKET, "device.strategy=fsdp", "optimizer=adamw"],
    "cpu": [*TRAIN[:2], "--hours", "1", *BUCKET],
    "sweep": ["--sweep", "space.yaml", "--workers", "3", "--gpus", "L4"],
    "serve": ["--serve", "s3://bucket/model", "--replicas", "2:4"],
    "modal": [*TRAIN, "H100:2", "--cloud", "modal", "--max-dollars", "50"],
}


def write(directory: Path) -> None:
    """Write every request of `REQUESTS`, and the clouds we take."""
    os.chdir(directory)
    toy_model(1).save_pretrained(directory / "model")  # type: ignore[operator]
    (directory / "space.yaml").write_text("name: toy\n")
    secrets = {"HF_TOKEN": "t", "WF_SWEEP_STORAGE": "postgresql://host/db", "WRINKLEFREE_API_KEY": "k"}
    os.environ.update(secrets)
    import yaml

    for name, words in REQUESTS.items():
        model = [f"model={directory / 'model'}"] if words[0].startswith("training") else []
        file = directory / f"{name}.out.json"
        assert main(["launch", *words, *model, "--name", name, "--dry-run", "--json", str(file)]) == 0, name
        request = json.loads(file.read_text())["request"]
        (directory / f"{name}.json").write_text(json.dumps(request))
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(request, sort_keys=False))
    (directory / "clouds.json").write_text(json.dumps(CLOUDS))


if __name__ == "__main__":
    write(Path(sys.argv[1]).resolve())
