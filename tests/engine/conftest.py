"""A packed toy, and a copy of it to damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_models import make_toy


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("loader") / "toy", "llama_row_odd_sizes")


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    return tmp_path
