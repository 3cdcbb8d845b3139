"""`wf launch --dry-run`: what would be started follows from the recipe, and what cannot work is refused before."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "train"))
from train_toys import toy_model

from wrinklefree.cli.main import main
from wrinklefree.train.compose import compose
from wrinklefree.train.plan import plan

yaml = pytest.importorskip("yaml", reason="PyYAML is missing: no task was rendered")
RECIPE = ["training=stage2_pretrain", "data=fineweb"]
BUCKET = ["--bucket", "s3://bucket/runs"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("launch") / "model"
    toy_model(1).save_pretrained(directory)  # type: ignore[operator]
    return str(directory)


@pytest.fixture(autouse=True)
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "WANDB_API_KEY", "WF_SWEEP_STORAGE", "WRINKLEFREE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def shown(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """Return the JSON and what people see."""
    found = main(["launch", *words, "--dry-run", "--json", "-"])
    said = capsys.readouterr()
    assert found == code, said.err
    return (json.loads(said.out) if said.out else {}), said.err


def test_the_task_is_the_recipe_on_those_machines(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, said = shown(capsys, *RECIPE, f"model={model}", "--gpus", "h100:8", "--nodes", "2", *BUCKET)
    task = found["request"]
    assert task == yaml.safe_load(said[: said.index("estimate ")]), "what is shown is what is asked for"
    assert task["resources"] == {"accelerators": "H100:8", "disk_size": 100} and task["num_nodes"] == 2
    assert task["file_mounts"] == {"~/inputs/model/model": model}
    words = shlex.split(task["run"].splitlines()[-1])
    assert words[words.index("wf") + 1] == "train" and words[:3] == ["restarted", "1", "torchrun"]
    mine = [word for word in words if "=" in word]
    assert "model=inputs/model/model" in mine and "sync.mode=required" in mine
    there = compose([f"model={model}" if word.startswith("model=") else word for word in mine])
    here = compose([*RECIPE, f"model={model}"])
    assert there.device.processes == 16 and there.step_tokens == here.step_tokens and there.steps == here.steps
    assert there.identity == here.identity


@pytest.mark.parametrize(("gpus", "nodes", "micro", "accumulation"), [("H100", 1, 512, 1), ("L4:4", 2, 64, 1)])
def test_the_batch_is_what_fits_and_the_step_stays(
    gpus: str, nodes: int, micro: int, accumulation: int, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = shown(capsys, *RECIPE, f"model={model}", "--gpus", gpus, "--nodes", str(nodes), *BUCKET)
    words = shlex.split(found["request"]["run"])
    sizes = {key: int(value) for key, _, value in (word.partition("=") for word in words) if key.startswith("batch.")}
    assert sizes == {"batch.micro_batch": micro, "batch.accumulation": accumulation}


def test_files_are_sent_under_names_of_their_own(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file for two words is sent twice; a recipe's name is no file, even where one has it."""
    (tmp_path / "fineweb").mkdir()
    words = ["training=bitdistill", "data=fineweb", f"model={model}", f"model.teacher={model}", "log.project=a/b"]
    found, _ = shown(capsys, *words, "--gpus", "H100", "--cloud", "modal")
    assert found["request"]["files"] == {
        "/job/inputs/model/model": model,
        "/job/inputs/model-teacher/model": model,
    }


def test_the_disk_holds_the_states(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A toy's are small; a thousand of them are not."""
    words = [*RECIPE, f"model={model}", "--gpus", "H100", *BUCKET]
    many = 100_000
    size = sum(plan(compose([*RECIPE, f"model={model}", f"checkpoint.keep_last={many}"])).disk.values()) / 1e9
    assert size > 60
    found, _ = shown(capsys, *words, f"checkpoint.keep_last={many}")
    assert found["request"]["resources"]["disk_size"] == pytest.approx(60 + size, abs=1)
    said = shown(capsys, *words, f"checkpoint.keep_last={many}", "--disk", "100", code=2)[1]
    assert "--disk 100: the job takes" in said


def test_a_cap_becomes_a_price_and_a_deadline(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Price of a machine x machines x time to the deadline is the cap: it cannot cost more."""
    words = [*RECIPE, f"model={model}", "--gpus", "H100:8", "--nodes", "2", "--price", "4", *BUCKET]
    found, _ = shown(capsys, *words, "--max-dollars", "64")
    assert found["request"]["resources"]["max_hourly_cost"] == 32.0
    assert found["cap"]["seconds"] == 3600.0 and found["estimate"]["dollars_per_hour"] == 64.0
    assert found["request"]["envs"]["WRINKLEFREE_DEADLINE"] == str(found["deadline"])
    said = shown(capsys, *words, "--max-dollars", "64", "--hours", "1.5", code=2)[1]
    assert "1.5 hours x $64.00 an hour = $96.00" in said and "nothing was started" in said


def test_variables_are_named_and_their_values_are_nowhere(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*RECIPE, *BUCKET, f"model={model}", "log.tracker=wandb", "--env", "MORE", "--env", "SEEN=yes"]
    said = shown(capsys, *words, code=2)[1]
    assert "MORE (--env), WANDB_API_KEY (log.tracker=wandb)" in said
    (tmp_path / ".env").write_text("WANDB_API_KEY=hunter2\n")
    monkeypatch.setenv("MORE", "hunter3")
    monkeypatch.setenv("HF_TOKEN", "hunter4")
    found, said = shown(capsys, *words)
    assert found["request"]["secrets"] == {"MORE": None, "WANDB_API_KEY": None, "HF_TOKEN": None}
    assert found["request"]["envs"] == {"SEEN": "yes"}
    assert "hunter" not in json.dumps(found) and "hunter" not in said


def test_a_sweep_is_as_many_jobs_on_one_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "space.yaml").write_text("name: toy\n")
    words = ["--sweep", "space.yaml", "--workers", "3", "--trials", "9", "--gpus", "L4"]
    assert "WF_SWEEP_STORAGE (the database" in shown(capsys, *words, code=2)[1]
    monkeypatch.setenv("WF_SWEEP_STORAGE", "sqlite:///study.sqlite")
    assert "a file of one machine" in shown(capsys, *words, code=2)[1]
    monkeypatch.setenv("WF_SWEEP_STORAGE", "postgresql://user:hunter2@host/db")
    found, said = shown(capsys, *words)
    assert "wf sweep inputs/space.yaml --out runs/sweep-space --trials 9" in found["request"]["run"]
    assert "hunter2" not in said and found["secrets"] == ["WF_SWEEP_STORAGE"]


def test_a_service_needs_a_key(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "WRINKLEFREE_API_KEY (whoever has it may ask)" in shown(capsys, "--serve", model, code=2)[1]
    monkeypatch.setenv("WRINKLEFREE_API_KEY", "hunter2")
    found, _ = shown(capsys, "--serve", model, "--replicas", "2:5", "--rate", "3")
    policy = found["request"]["service"]["replica_policy"]
    assert (policy["min_replicas"], policy["max_replicas"], policy["target_qps_per_replica"]) == (2, 5, 3.0)
    assert "--max-dollars: a service runs until" in shown(capsys, "--serve", model, "--max-dollars", "5", code=2)[1]


def test_the_deployed_service_is_the_one_that_is_rendered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRINKLEFREE_API_KEY", "hunter2")
    found, said = shown(capsys, "--serve", "s3://bucket/model")
    deployed = (Path(__file__).parents[2] / "deploy" / "skypilot" / "serve.yaml").read_text()
    assert found["request"] == yaml.safe_load(deployed)
    assert deployed.endswith("\n" + said[: said.index("estimate")]), "word for word"


def test_modal_gets_the_same_script(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = shown(capsys, *RECIPE, f"model={model}", "--gpus", "H100:2", "--cloud", "modal", "--max-dollars", "10")
    settings = found["request"]
    assert settings["gpu"] == "H100:2" and settings["files"] == {"/job/inputs/model/model": model}
    assert settings["volume"] == f"{found['name']}-state" and settings["mount"] == "/state"
    assert 0 < settings["timeout"] <= 10 / found["estimate"]["dollars_per_hour"] * 3600


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a recipe"),
        (["--gpus", "H1000"], "did you mean 'H100'"),
        (["--gpus", "H100:x"], "such as H100:8"),
        (["--gpus", "H100", *BUCKET, "--cloud", "awss"], "did you mean 'aws'"),
        (["--gpus", "H100", "device.devices=2"], "follows from --gpus and --nodes"),
        (["--gpus", "H100:3", *BUCKET], "cannot be divided among 3 processes"),
        (["--gpus", "H100"], "what is on them is gone"),
        (["--gpus", "H100", "--spot", "--bucket", "file:///x"], "is on the machine that --spot lets be taken away"),
        (["--gpus", "H100", "--spot", *BUCKET, "checkpoint.save_every=null"], "saves no state on its way"),
        (["--gpus", "H100", *BUCKET, "sync.url=s3://x"], "say the same"),
        (["--gpus", "H100", "out=x"], "the results are in the bucket"),
        (["--gpus", "H100", "optimzer.lr=1"], "did you mean 'optimizer.lr'"),
        (["--gpus", "A10G", "--price", "1", "--nodes", "2", *BUCKET, "--cloud", "modal"], "one function runs on one"),
        ([*BUCKET, "--max-dollars", "5"], "the price of these machines is unknown"),
        ([*BUCKET, "--disk", "20"], "the job takes 60 GB"),
        ([*BUCKET, "--disk", "80"], "need 100 GB or more"),
    ],
)
def test_what_cannot_work_is_refused(
    words: list[str], message: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = shown(capsys, *([*RECIPE, f"model={model}"] if words else []), *words, code=2)[1]
    assert message in said


def test_the_providers_command_is_called_with_the_task_and_the_secrets(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in `sky`'s place: it gets the file that the dry run shows, and the value in its environment alone."""
    sky = tmp_path / "sky"
    sky.write_text('#!/bin/bash\necho "$@" > words\necho "$HF_TOKEN" > token\ncp "${@: -1}" task.yaml\nexit $ENDS\n')
    sky.chmod(0o755)
    (tmp_path / ".env").write_text("HF_TOKEN=hunter2\n")
    monkeypatch.setenv("ENDS", "0")
    words = ["launch", *RECIPE, f"model={model}", *BUCKET, "--gpus", "H100", "--name", "mine", "--sky", str(sky)]
    assert main(words) == 0
    called = (tmp_path / "words").read_text().split()
    assert called[:-1] == ["jobs", "launch", "--yes", "--detach-run", "--name", "mine", "--secret", "HF_TOKEN"]
    assert (tmp_path / "token").read_text() == "hunter2\n" and not Path(called[-1]).exists()
    task = yaml.safe_load((tmp_path / "task.yaml").read_text())
    assert task["secrets"] == {"HF_TOKEN": None} and task["name"] == "mine"
    monkeypatch.setenv("ENDS", "3")
    assert main(words) == 1 and "sky ended with 3" in capsys.readouterr().err
    monkeypatch.setenv("PATH", os.devnull)
    assert main(words[:-2]) == 1 and "SkyPilot's command, is not on PATH" in capsys.readouterr().err
