"""Programs of other people, where they are installed, read the files we write: tokens, greedy choices, logits.

Compared: the program with our engine on the same file, as `wf export --verify-with` does, on a model whose widths are
multiples of 256 and on one whose widths are not. `WRINKLEFREE_READERS` names programs beyond those found by themselves:
paths, parted by colons, as --verify-with takes them.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_checkpoints

from wrinklefree.errors import InputError
from wrinklefree.export.export import export
from wrinklefree.export.foreign_programs import open_node_llama_cpp
from wrinklefree.quant.ternary import TernarySpec

pytestmark = pytest.mark.slow

_GIVEN = [path for path in os.environ.get("WRINKLEFREE_READERS", "").split(os.pathsep) if path]
_BITNET = [path for path in _GIVEN if "bitnet" in Path(path).name]


def _llama_programs() -> list[str]:
    """Programs of upstream llama.cpp."""
    found = [path for path in _GIVEN if path not in _BITNET]
    if find_spec("llama_cpp") is not None:
        found.append("llama-cpp-python")
    try:
        open_node_llama_cpp(None, Path("none.gguf"), 8, 64, 30.0).close()
    except InputError:
        pass
    except Exception:  # it is there, and refuses a file that is not
        found.append("node-llama-cpp")
    return found


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toys: `wide` with one scale a matrix, `groups` of 64 columns with widths that are no 256, and two families."""
    root = tmp_path_factory.mktemp("programs")
    wide: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}
    wide["dtype"] = torch.float16  # tables that every format holds exactly
    toy_checkpoints.write(root / "wide", spec=TernarySpec("tensor", 64), **wide)
    toy_checkpoints.write(root / "groups")
    toy_checkpoints.write(root / "qwen3", "qwen3", TernarySpec("tensor", 64), **wide)
    toy_checkpoints.write(root / "qwen2", "qwen2", TernarySpec("tensor", 64), **wide)
    return root


@pytest.mark.parametrize("format", ["gguf-tq1_0", "gguf-tq2_0"])
@pytest.mark.parametrize("name", ["wide", "groups", "qwen2", "qwen3"])
def test_llama_cpp_does_what_the_engine_does(checkpoints: Path, tmp_path: Path, name: str, format: str) -> None:
    programs = _llama_programs()
    if not programs:
        pytest.skip("no program of llama.cpp is installed: that it reads our TQ1_0 and TQ2_0 files was not checked")
    for index, program in enumerate(programs):
        report = export(checkpoints / name, tmp_path / f"{index}.gguf", format, threads=1, verify_with=program)
        assert report.foreign is not None and report.foreign.passed and report.foreign.prompts == 3


def test_bitnet_cpp_does_what_the_engine_does(checkpoints: Path, tmp_path: Path) -> None:
    if not _BITNET:
        pytest.skip("WRINKLEFREE_READERS names no bitnet.cpp: that it reads our I2_S files was not checked")
    for index, program in enumerate(_BITNET):
        report = export(checkpoints / "wide", tmp_path / f"{index}.gguf", "gguf-i2_s", threads=1, verify_with=program)
        assert report.foreign is not None and report.foreign.passed


def test_transformers_does_what_the_engine_does(checkpoints: Path, tmp_path: Path) -> None:
    report = export(checkpoints / "wide", tmp_path / "hf", "hf", threads=1, verify_with="transformers")
    assert report.foreign is not None and report.foreign.passed
    # Random weights: many choices are near ties.
    assert report.foreign.same_choices >= 0.75 * report.foreign.greedy_tokens
