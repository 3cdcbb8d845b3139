"""The server that all clients talk to, and no network beside it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import HERE, KEY, PYTHON, Served, environment, serving


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clients") / "toy"
    subprocess.run([PYTHON, str(HERE / "own_side.py"), "write", str(directory)], check=True, env=environment())
    return directory


@pytest.fixture(scope="session")
def served(toy: Path) -> Iterator[Served]:
    with serving(toy) as found:
        yield found


@pytest.fixture(autouse=True)
def closed_network(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """No client looks anywhere but at the server."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
