"""What a result says about its origin, against the commands and files that know it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from wrinklefree.artifact.provenance import _commit, machine, provenance
from wrinklefree.version import __version__


def _git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    done = subprocess.run(["git", "-C", directory, *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_it_is_plain_and_names_this_version() -> None:
    found = json.loads(json.dumps(provenance()))
    assert found["wrinklefree"] == __version__
    assert found["packages"]["numpy"]
    assert found["machine"] == machine()
    assert found["machine"]["cores"] >= 1


def test_the_commit_is_gits_and_changes_are_noticed(tmp_path: Path) -> None:
    _git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("one")
    _git(tmp_path, "add", "file")
    _git(tmp_path, "commit", "--quiet", "--message", "one")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    assert _commit(tmp_path) == (commit, False)
    (tmp_path / "file").write_text("two")
    assert _commit(tmp_path) == (commit, True)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: (path / ".git").mkdir()])
def test_no_checkout_has_no_commit(tmp_path: Path, make) -> None:
    make(tmp_path)
    assert _commit(tmp_path) == (None, False)


def test_the_password_of_a_url_is_not_in_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/bin/wf", "sweep", "--storage", "postgresql://me:se:cr/et@host/db", "http://host:80/a", "sqlite:///a"]
    monkeypatch.setattr("sys.argv", words)
    assert provenance()["command"] == ["wf", "sweep", "--storage", "postgresql://me:***@host/db", *words[4:]]
