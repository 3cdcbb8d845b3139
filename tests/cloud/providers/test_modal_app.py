"""Modal itself reads our app: it imports, with the function's settings; the function runs a script. No account."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

modal = pytest.importorskip("modal", reason="Modal is missing: the app was not imported")
APP = Path(__file__).parents[3] / "src" / "wrinklefree" / "cloud" / "modal_app.py"


def imported(monkeypatch: pytest.MonkeyPatch, job: Path | None) -> ModuleType:
    monkeypatch.delenv("WRINKLEFREE_JOB", raising=False)
    if job is not None:
        monkeypatch.setenv("WRINKLEFREE_JOB", str(job))
        monkeypatch.setenv("HF_TOKEN", "t")
    spec = importlib.util.spec_from_file_location("modal_app", APP)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_app_has_one_function_that_takes_a_script(requests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = imported(monkeypatch, requests / "modal.json")
    given = json.loads((requests / "modal.json").read_text())
    assert module.app.name == "modal" and list(module.app.registered_functions) == ["run"]
    spec = module.run._spec_  # nothing public tells it without an account
    assert spec.gpus == given["gpu"] == "H100:2"
    assert [str(path) for path in spec.volumes] == ["/state"] and len(spec.secrets) >= 1
    assert given["ephemeral_disk"] is None and given["timeout"] <= 24 * 3600


def test_modal_run_takes_the_command_that_is_called() -> None:
    """`modal run APP::run --script TEXT`, up to the point where an account is asked for."""
    command = [sys.executable, "-m", "modal", "run", "--detach", f"{APP}::run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "--script TEXT" in done.stdout, done.stderr


def test_it_imports_where_the_job_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the container."""
    assert list(imported(monkeypatch, None).app.registered_functions) == ["run"]


def test_the_function_runs_bash_and_fails_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = imported(monkeypatch, None).run.local
    run(f"echo done > {tmp_path}/file")
    assert (tmp_path / "file").read_text() == "done\n"
    with pytest.raises(subprocess.CalledProcessError):
        run("exit 3")
