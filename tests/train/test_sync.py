"""Copies of the state at a remote place: whole or not counted, bounded, resumed from; failures are told truthfully."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from recipe_toys import arguments, write_toy

from wrinklefree.cli.main import main
from wrinklefree.errors import InputError, TrainingError
from wrinklefree.train.checkpoint import MANIFEST, load_newest, save_state
from wrinklefree.train.remote import Remote, SyncRecipe


class Locked(MemoryFileSystem):
    """A bucket whose credentials are wrong."""

    protocol = "locked"

    def pipe_file(self, *args: Any, **kwargs: Any) -> None:
        raise PermissionError("403 Forbidden: no valid credentials")

    put_file = makedirs = pipe_file


class Fragile(MemoryFileSystem):
    """A network that breaks off at the manifest while ``broken`` is set."""

    protocol = "fragile"
    store: dict[str, Any] = {}  # noqa: RUF012 (as in its parent)
    broken = False

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        if Fragile.broken and rpath.endswith(MANIFEST):
            raise ConnectionError("reset by peer")
        super().put_file(lpath, rpath, *args, **kwargs)


for each in (Locked, Fragile):
    fsspec.register_implementation(str(each.protocol), each, clobber=True)


def local_states(directory: Path, *steps: int) -> list[Path]:
    return [save_state(directory, step, {"step": step}, keep_last=9) for step in steps]


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_the_newest_copies_stay_and_come_back(kind: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/there" if kind == "file" else f"memory://{tmp_path.name}"
    remote = Remote(SyncRecipe(url, keep_last=2), "toy")
    remote.check()
    assert not remote.pull(tmp_path / "nothing")
    paths = local_states(tmp_path / "here", 5, 10, 15)
    for path in paths:
        remote.push(path)
    fs, root = fsspec.core.url_to_fs(f"{url}/toy")
    assert sorted(str(path).rpartition("/")[2] for path in fs.ls(root, detail=False)) == [
        "step-00000010",
        "step-00000015",
    ]
    assert remote.pull(tmp_path / "again")
    state = load_newest(tmp_path / "again", print)
    assert state is not None and state["step"] == 15
    assert not remote.pull(tmp_path / "again"), "what this machine has is newer than any copy"


def test_a_copy_without_its_manifest_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remote = Remote(SyncRecipe(f"fragile://{tmp_path.name}"), "toy")
    first, second = local_states(tmp_path / "here", 5, 10)
    remote.push(first)
    Fragile.broken = True
    remote.push(second)
    said = capsys.readouterr().err
    assert "REMOTE COPY FAILED" in said and "Training continues" in said and str(second) in said
    Fragile.broken = False
    assert remote.pull(tmp_path / "again")
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["step-00000005"]
    remote.push(second)  # the next save repairs it
    assert remote.pull(tmp_path / "more") and (tmp_path / "more" / "step-00000010").is_dir()


def test_required_copies_end_the_run_when_they_fail(tmp_path: Path) -> None:
    remote = Remote(SyncRecipe(f"fragile://{tmp_path.name}", "required"), "toy")
    (state,) = local_states(tmp_path / "here", 5)
    Fragile.broken = True
    with pytest.raises(TrainingError, match=r"training stops; the state in .* is intact"):
        remote.push(state)
    Fragile.broken = False
    assert load_newest(tmp_path / "here", print) is not None


def test_a_place_that_never_answers_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import threading

    answer = threading.Event()
    remote = Remote(SyncRecipe("memory://silent", timeout_seconds=0.1), "toy")
    remote._connect = answer.wait  # type: ignore[method-assign, assignment]
    remote.check()
    assert "no answer within 0.1 s" in capsys.readouterr().err
    remote.push(tmp_path)
    assert "an earlier attempt did not answer" in capsys.readouterr().err
    answer.set()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


def wf(toy: Path, out: Path, *more: str) -> int:
    return main(["train", *arguments(toy, "stage2_pretrain"), *more, f"--out={out}"])


def test_t6_missing_credentials_are_told_as_they_are(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Optional: the run finishes and never says that it was aborted. Required: nothing is trained, exit code 2."""
    optional = tmp_path / "optional"
    assert wf(toy, optional, "sync.url=locked://bucket") == 0
    said = capsys.readouterr().err
    assert "Training continues" in said and "403 Forbidden" in said and "ABORT" not in said.upper()
    assert (optional / "config.json").is_file()
    summary = json.loads((optional / "summary.json").read_text())
    assert summary["status"] == "COMPLETED" and summary["events"]["credentials_missing"] >= 1
    messages = [json.loads(path.read_text())["message"] for path in (optional / "audit").iterdir()]
    assert any("REMOTE COPIES FAIL" in message and message in said for message in messages)

    required = tmp_path / "required"
    assert wf(toy, required, "sync.url=locked://bucket", "sync.mode=required") == 2
    said = capsys.readouterr().err
    assert "sync.mode=required; nothing was trained" in said and "403 Forbidden" in said
    assert not (required / "config.json").exists() and not (required / "metrics.jsonl").exists()
    assert json.loads((required / "summary.json").read_text())["status"] == "FAILED"


def test_a_machine_that_lost_its_disk_goes_on_from_the_copies(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sync.url=file://{tmp_path}/bucket"
    assert wf(toy, tmp_path / "a", url) == 0
    weights = (tmp_path / "a" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "a")
    capsys.readouterr()
    assert wf(toy, tmp_path / "b", url) == 0
    assert "Took step-00000003" in capsys.readouterr().err
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == weights
    with pytest.raises(InputError, match=r"sync.mode: nothing would read it"):
        from wrinklefree.train.compose import compose

        compose(["training=stage2_pretrain", "sync.mode=required"])
